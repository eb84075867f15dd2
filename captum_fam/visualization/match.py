"""Figures of similarity maps, on top of Captum's ``visualize_image_attr``.

One convention everywhere: red speaks for the match, blue against it (for the foil), and zero is clear. The scale is
linear, symmetric about zero and reaches to the largest magnitude; nothing is clipped. Below the colors lies the
image in gray. Images are RGB. A map that is the same everywhere says so in words. How large rounding noise is depends
on the score, which is not known here: :func:`~captum_fam.explain` gives maps without it.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from captum.attr import visualization as captum_visualization
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.image import AxesImage
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.textpath import text_to_path
from matplotlib.ticker import FuncFormatter, MaxNLocator
from PIL import Image
from torch import Tensor

from captum_fam._files import staged
from captum_fam.attr.account import number_in_words
from captum_fam.images import unnormalize
from captum_fam.metrics.maps import find_empty

__all__ = ["MATCH_COLORS", "MapFigure", "overlay", "unnormalize", "visualize_match"]

Array = npt.NDArray[Any]
ImageLike = Tensor | Array | Image.Image
MapLike = Tensor | Array
Scale = Literal["shared", "own"]

MATCH_COLORS = LinearSegmentedColormap.from_list(
    "match",
    [
        (0.05, 0.12, 0.45, 0.90),
        (0.14, 0.40, 0.80, 0.78),
        (0.40, 0.75, 0.98, 0.55),
        (1.00, 1.00, 1.00, 0.00),
        (1.00, 0.72, 0.22, 0.55),
        (0.90, 0.22, 0.10, 0.78),
        (0.50, 0.00, 0.08, 0.90),
    ],
    N=513,  # odd, so that zero has a color of its own
)
"""Blue, clear, red. Opacity is part of the map, so that a color bar shows what lies over the image."""

_HEIGHT = 2.2  # of a panel, in inches
_NARROWEST = 0.8  # room of a panel over its height: a title needs it, also above a tall image
_TITLE = FontProperties(size=9)
_LINE = 0.155  # of a title, in inches
_MOST_THUMBNAILS = 9


class MapFigure(Figure):
    """A matplotlib figure outside pyplot: nothing to close, and a notebook shows it."""

    def save(self, path: str | Path, dpi: float = 150) -> None:
        """Write the figure in the format of the suffix; the file is whole or not there."""
        path = Path(path)
        with staged(path.parent) as folder:
            self._write(folder / path.name, dpi=dpi)

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self._write(buffer, format="png", dpi=100)
        return buffer.getvalue()

    def _write(self, target: Any, **options: Any) -> None:
        self.savefig(target, bbox_inches="tight", pad_inches=0.08, facecolor="white", **options)


def visualize_match(
    query: ImageLike,
    maps: Mapping[str, MapLike],
    *,
    supports: Sequence[ImageLike] | Tensor = (),
    foils: Sequence[ImageLike] | Tensor = (),
    scores: Mapping[str, float] | None = None,
    notes: Mapping[str, str] | None = None,
    scale: Scale = "shared",
    mask: MapLike | None = None,
    titles: Mapping[str, str] | None = None,
) -> MapFigure:
    """Draw a query, what it was compared with, and any number of maps over it.

    Args:
        query: ``(C, H, W)`` as a tensor, ``(H, W)`` or ``(H, W, C)`` as an array, or a PIL image; one or three
            channels, floats in [0, 1] or 8-bit integers. :func:`unnormalize` makes them from a model's input.
        maps: by title, ``(H, W)``, ``(1, H, W)`` or ``(H, W, 1)``; brought to the image's size bilinearly.
        supports: images of any sizes; the first nine are shown.
        foils: images that the match is contrasted with.
        scores: by title, the score that a map explains, written above it.
        notes: by title, further lines above a map. Lines that are too long are broken.
        scale: ``"shared"``: the maps are in one unit and share one scale, so that their colors compare.
            ``"own"``: methods of different units, each with its own color bar.
        mask: ``(H, W)``, nonzero where an object is, drawn as an outline on query and maps.
        titles: for the panels ``"query"``, ``"supports"`` and ``"foils"``, in place of these words.

    Raises:
        ValueError: for images outside [0, 1], maps with NaN or inf, or shapes other than those above.

    Example:
        >>> figure = visualize_match(photo, {"FAM": attributions[0]}, supports=photos, scores={"FAM": 0.83})
        >>> figure.save("match.png")
    """
    if scale not in get_args(Scale):
        raise ValueError(f'scale must be "shared" or "own", got {scale!r}')
    for name, given in (("scores", scores), ("notes", notes)):
        unknown = sorted(set(given or ()) - set(maps))
        if unknown:
            raise ValueError(f"{name} has the title(s) {', '.join(unknown)}, which maps has not")
    picture = _as_rgb(query, "query")
    values = {title: _fit(_as_map(one, title), picture.shape[:2]) for title, one in maps.items()}
    outline = None if mask is None else _fit(_as_map(mask, "mask"), picture.shape[:2])
    named = {"query": "query", "supports": "support", "foils": "foil", **(titles or {})}
    groups = [
        (_counted(named[key], len(images)), [_as_rgb(image, key) for image in images[:_MOST_THUMBNAILS]])
        for key, images in (("supports", supports), ("foils", foils))
        if len(images)
    ]
    wide = _aspect(picture)
    rooms = [max(one, _NARROWEST) for one in (wide, *(_grid(images)[2] for _, images in groups), *[wide] * len(values))]
    said = {title: f"score {number_in_words(score)}" for title, score in (scores or {}).items()}
    above = [named["query"], *(title for title, _ in groups)]
    above += [
        "\n".join(filter(None, (title, said.get(title), (notes or {}).get(title), _flatness(one))))
        for title, one in maps.items()
    ]
    above = [_wrapped(text, _HEIGHT * room) for text, room in zip(above, rooms, strict=True)]
    # As high as the titles need, or the panels would shrink and no longer be as wide as their titles.
    height = _HEIGHT + _LINE * max(text.count("\n") + 1 for text in above) + 0.45
    figure = MapFigure(
        figsize=(_HEIGHT * sum(rooms) + 0.3 * len(rooms), height), layout=ConstrainedLayoutEngine(w_pad=0.08)
    )
    axes = figure.subplots(1, len(rooms), squeeze=False, width_ratios=rooms, subplot_kw={"anchor": "N"})[0]
    for ax, text in zip(axes, above, strict=True):
        ax.set_title(text, fontproperties=_TITLE)
    first, *others = axes
    _draw_image(first, picture)
    _draw_outline(first, outline)
    for (_, pictures), ax in zip(groups, others, strict=False):
        _draw_thumbnails(ax, pictures)
    limits = _limits(values, scale)
    heats = {}
    for (title, one), ax in zip(values.items(), others[len(groups) :], strict=True):
        heats[title] = _draw_map(ax, picture, one, limits[title])
        _draw_outline(ax, outline)
    bars = heats if scale == "own" else dict(list(heats.items())[-1:])
    for title, heat in bars.items():
        shown = [values[title]] if scale == "own" else list(values.values())
        if any(one.any() for one in shown):  # zeros have no scale
            _draw_bar(heat, signed=any((one < 0).any() for one in shown), beside=scale == "shared")
    return figure


def overlay(image: ImageLike, attribution: MapLike, limit: float | None = None) -> Image.Image:
    """The map over the gray image, at the image's size, without frame or text.

    Args:
        image: as ``query`` of :func:`visualize_match`.
        attribution: the map, as there.
        limit: the magnitude of full color; None: the map's largest.
    """
    picture = _as_rgb(image, "image")
    values = _fit(_as_map(attribution, "attribution"), picture.shape[:2])
    limit = limit or _largest(values)
    colors = MATCH_COLORS(0.5 + 0.5 * values / limit)
    opacity = colors[..., 3:]
    blended = (1 - opacity) * picture.mean(2, keepdims=True) + opacity * colors[..., :3]
    return Image.fromarray((blended * 255).round().astype(np.uint8))


def _draw_image(ax: Axes, picture: Array) -> None:
    # Captum wants an attribution here too, and scales it; it is not drawn.
    captum_visualization.visualize_image_attr(
        np.ones((*picture.shape[:2], 1)),
        picture,
        method="original_image",
        sign="all",
        plt_fig_axis=(ax.figure, ax),
        use_pyplot=False,
    )
    ax.set(xticks=[], yticks=[])  # Captum only hides them, and they would still be laid out


def _draw_map(ax: Axes, picture: Array, values: Array, limit: float) -> AxesImage:
    # Captum scales each map by its own values, cuts outliers, and refuses a map of zeros. So it lays out the panel
    # around a placeholder, and the values go in on the scale of the figure.
    captum_visualization.visualize_image_attr(
        np.ones((*values.shape, 1)),
        picture,
        method="blended_heat_map",
        sign="all",
        plt_fig_axis=(ax.figure, ax),
        cmap=MATCH_COLORS,
        use_pyplot=False,
    )
    ax.set(xticks=[], yticks=[])
    gray, heat = ax.images
    gray.set_clim(0, 255)  # else the contrast of each image is stretched
    heat.set_data(values)
    heat.set_clim(-limit, limit)
    heat.set_alpha(None)  # else it overrides that of the colors
    return heat


def _draw_outline(ax: Axes, outline: Array | None) -> None:
    if outline is not None and (outline > 0.5).any():
        ax.contour(outline > 0.5, levels=[0.5], colors="black", linewidths=2.2)
        ax.contour(outline > 0.5, levels=[0.5], colors="white", linewidths=1.0)


def _draw_thumbnails(ax: Axes, pictures: Sequence[Array]) -> None:
    rows, columns, wide = _grid(pictures)
    ax.axis("off")
    ax.set_box_aspect(1 / wide)
    gap = 0.04  # of a cell
    for i, picture in enumerate(pictures):
        row, column = divmod(i, columns)
        place = (column / columns, 1 - (row + 1 - gap) / rows, (1 - gap) / columns, (1 - gap) / rows)
        inset = ax.inset_axes(place)
        _draw_image(inset, picture)
        inset.set_in_layout(False)  # it lies within its parent


def _grid(pictures: Sequence[Array]) -> tuple[int, int, float]:
    """Rows and columns of a block of pictures, and its width over its height."""
    wide = float(np.mean([_aspect(picture) for picture in pictures]))
    columns = math.ceil(math.sqrt(len(pictures) / wide))
    rows = math.ceil(len(pictures) / columns)
    return rows, columns, wide * columns / rows


def _aspect(picture: Array) -> float:
    """Width over height, within what a figure can lay out."""
    return float(np.clip(picture.shape[1] / picture.shape[0], 0.5, 2.5))


def _counted(title: str, count: int) -> str:
    return title if count <= _MOST_THUMBNAILS else f"{title}\n{_MOST_THUMBNAILS} of {count}"


def _flatness(attribution: MapLike) -> str:
    """What is said of a map without differences."""
    values = torch.as_tensor(attribution)
    if not values.any():
        return "zero everywhere"
    # In the precision that the map has, whose rounding is no difference.
    precise = values if values.is_floating_point() else values.double()
    return "the same everywhere" if find_empty(precise.reshape(1, -1)).item() else ""


def _wrapped(text: str, inches: float) -> str:
    """Lines that are no longer than this; words that are longer are broken."""
    lines: list[str] = []
    for line in text.split("\n"):
        words = line.split()
        lines.append("")
        while words:
            word = words.pop(0)
            longer = f"{lines[-1]} {word}".strip()
            if _length(longer) <= inches:
                lines[-1] = longer
            elif lines[-1]:
                lines.append("")
                words.insert(0, word)
            else:
                fitting = next(end for end in range(len(word) - 1, 0, -1) if end == 1 or _length(word[:end]) <= inches)
                lines[-1:] = [word[:fitting], ""]
                words.insert(0, word[fitting:])
    return "\n".join(lines)


def _length(text: str) -> float:
    """Of a title, in inches."""
    return float(text_to_path.get_text_width_height_descent(text, _TITLE, False)[0]) / 72


def _draw_bar(heat: AxesImage, signed: bool, beside: bool) -> None:
    ax = heat.axes
    place = (1.05, 0.0, 0.06, 1.0) if beside else (0.0, -0.11, 1.0, 0.06)
    bar_ax = ax.inset_axes(place)
    bar = ax.figure.colorbar(heat, cax=bar_ax, orientation="vertical" if beside else "horizontal")
    low, high = heat.get_clim()
    (bar_ax.set_ylim if beside else bar_ax.set_xlim)(low if signed else 0, high)
    bar.ax.tick_params(labelsize=8)
    height, width = heat.get_size()
    bar.locator = MaxNLocator(nbins=5 if beside else 1 if 2 * width < height else 3)
    bar.formatter = FuncFormatter(lambda value, _: f"{value:,.0f}" if high >= 1000 else f"{value:.3g}")
    bar.update_ticks()


def _limits(values: Mapping[str, Array], scale: Scale) -> dict[str, float]:
    if scale == "own":
        return {title: _largest(one) for title, one in values.items()}
    limit = _largest(np.concatenate([one.ravel() for one in values.values()] or [np.zeros(1)]))
    return dict.fromkeys(values, limit)


def _largest(values: Array) -> float:
    """The largest magnitude; one for a map of zeros, which any scale shows as clear."""
    return float(np.abs(values).max()) or 1.0


def _as_rgb(image: ImageLike, name: str) -> Array:
    """``(H, W, 3)`` in [0, 1]."""
    if isinstance(image, Tensor):
        image = image.detach().cpu().float() if image.is_floating_point() else image.cpu()
        pixels: Array = (image.movedim(0, -1) if image.dim() == 3 else image).numpy()
    else:
        pixels = np.asarray(image.convert("RGB") if isinstance(image, Image.Image) else image)
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 3) or not pixels.size:
        raise ValueError(
            f"{name} must be an image of one or three channels, a tensor (C, H, W) or an array (H, W, C), "
            f"got shape {tuple(getattr(image, 'shape', ()))}"
        )
    if pixels.dtype == np.uint8:
        pixels = pixels / 255
    if not (pixels.min() >= -1e-4 and pixels.max() <= 1 + 1e-4):
        raise ValueError(
            f"{name} has values from {pixels.min():.3g} to {pixels.max():.3g}, expected [0, 1] or 8-bit integers; "
            "undo the normalization with unnormalize(...)"
        )
    return np.broadcast_to(pixels, (*pixels.shape[:2], 3)).clip(0, 1)


def _as_map(attribution: MapLike, name: str) -> Tensor:
    """``(H, W)`` in float64, which an overlay's colors are computed in."""
    values = torch.as_tensor(attribution).detach().cpu().double()
    shape = tuple(values.shape)
    if values.dim() == 3 and 1 in (shape[0], shape[2]):
        values = values.squeeze(0 if shape[0] == 1 else 2)
    if values.dim() != 2 or not values.numel():
        raise ValueError(f"{name}: a map must have the shape (H, W), (1, H, W) or (H, W, 1), got {shape}")
    if not values.isfinite().all():
        raise ValueError(f"{name}: the map contains NaN or inf")
    return values


def _fit(values: Tensor, size: tuple[int, int]) -> Array:
    """Bilinear, as ``LayerAttribution.interpolate``; nothing happens at equal size."""
    if tuple(values.shape) != tuple(size):
        values = torch.nn.functional.interpolate(values[None, None], size, mode="bilinear")[0, 0]
    return values.numpy()
