"""Planted scenes: procedural images in which the truth about a match is known to the pixel.

A scene shows one object of a labeled class on a cluttered background, beside one or two distractors of other
classes. The exact masks of all of them are known, so a map that claims to show *what a query shares with its support*
can be held against where that object is. Everything is drawn from a seed; nothing is downloaded.

A class is a texture in a palette on a silhouette. Each of the three is shared by many classes, and distractors have
the sizes and contrasts of the object, so neither color nor shape nor saliency gives a class away. The textures of
the novel classes occur in no base scene at all.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

Array = npt.NDArray[np.floating[Any]]
Mask = npt.NDArray[np.bool_]
Box = tuple[int, int, int, int]
Split = Literal["base", "novel"]


# Textures. Each maps points, in units of one repeat, to the share of the palette's light color in [0, 1].


def _soft_step(height: Array, slope: float) -> Array:
    """A threshold at zero with soft edges, which small images show without aliasing."""
    return np.clip(0.5 + slope * height, 0.0, 1.0)


def _from_middle(x: Array) -> Array:
    """Distance to the middle of the repeat: 0.5 at its ends, 0 in between."""
    return np.abs(x % 1.0 - 0.5)


def _turned(x: Array, y: Array, angle: float) -> Array:
    return math.cos(angle) * x + math.sin(angle) * y


def _stripes(x: Array, y: Array) -> Array:
    return _soft_step(np.sin(2 * math.pi * x), 2.5)


def _checks(x: Array, y: Array) -> Array:
    return _soft_step(np.sin(math.pi * x) * np.sin(math.pi * y), 4.0)


def _hexagonal(x: Array, y: Array) -> Array:
    """Distance to the nearest point of a hexagonal lattice, made of two rectangular ones."""
    tall = math.sqrt(3)
    return np.minimum(
        np.hypot(_from_middle(x), tall * _from_middle(y / tall)),
        np.hypot(_from_middle(x + 0.5), tall * _from_middle(y / tall + 0.5)),
    )


def _dots(x: Array, y: Array) -> Array:
    return _soft_step(0.3 - _hexagonal(x, y), 6.0)


def _rings(x: Array, y: Array) -> Array:
    return _soft_step(np.cos(2 * math.pi * np.hypot(x, y)), 2.5)


def _zigzag(x: Array, y: Array) -> Array:
    return _soft_step(np.sin(2 * math.pi * (y + 1.6 * _from_middle(0.6 * x))), 2.5)


def _bricks(x: Array, y: Array) -> Array:
    row = np.floor(1.6 * y)
    seam = np.minimum(0.5 - _from_middle(1.6 * y), 1.8 * (0.5 - _from_middle(0.9 * x + 0.5 * (row % 2))))
    return _soft_step(seam - 0.17, 6.0)


def _trellis(x: Array, y: Array) -> Array:
    lines = [np.abs(_from_middle(_turned(x, y, k * math.pi / 3)) - 0.5) for k in range(3)]
    return _soft_step(np.minimum.reduce(lines) - 0.12, 6.0)


def _blobs(x: Array, y: Array) -> Array:
    waves = [np.cos(2 * math.pi * pace * _turned(x, y, k * 2.4) + k) for k, pace in enumerate((0.47, 0.55, 0.61, 0.7))]
    return _soft_step(np.sum(waves, axis=0), 1.5)


def _petals(x: Array, y: Array) -> Array:
    """Circles around the corners of a square grid; a petal is where two of them overlap."""
    across, along = x % 1.0, y % 1.0
    corners = [np.hypot(across - i, along - j) for i in (0, 1) for j in (0, 1)]
    return _soft_step(0.7 - np.sort(np.stack(corners), axis=0)[1], 7.0)


def _scales(x: Array, y: Array) -> Array:
    row = np.floor(2 * y)
    arc = np.hypot((x + 0.5 * (row % 2)) % 1.0 - 0.5, 0.6 * (2 * y - row))
    return np.clip(1.0 - 6.4 * np.abs(arc - 0.25), 0.0, 1.0)


def _crosses(x: Array, y: Array) -> Array:
    across, along = _from_middle(x), _from_middle(y)
    return _soft_step(0.16 - np.maximum(np.minimum(across, along), np.maximum(across, along) - 0.26), 7.0)


def _triangles(x: Array, y: Array) -> Array:
    waves = [np.sin(2 * math.pi * _turned(x, y, k * 2 * math.pi / 3)) for k in range(3)]
    return _soft_step(np.sum(waves, axis=0), 1.2)


def _plaid(x: Array, y: Array) -> Array:
    return 0.5 * (_stripes(x, y) + _stripes(y, x))


def _spiral(x: Array, y: Array) -> Array:
    return _soft_step(np.cos(2 * math.pi * np.hypot(x, y) + np.arctan2(y, x)), 2.5)


def _bubbles(x: Array, y: Array) -> Array:
    return _soft_step(0.11 - np.abs(np.hypot(_from_middle(x), _from_middle(y)) - 0.3), 7.0)


def _dashes(x: Array, y: Array) -> Array:
    row = np.floor(1.8 * y)
    gap = np.minimum(0.26 - _from_middle(1.8 * y), 1.8 * (0.33 - _from_middle(0.8 * x + 0.37 * row)))
    return _soft_step(gap, 5.0)


_BASE_TEXTURES: dict[str, Callable[[Array, Array], Array]] = {
    "stripes": _stripes,
    "checks": _checks,
    "dots": _dots,
    "rings": _rings,
    "zigzag": _zigzag,
    "bricks": _bricks,
    "trellis": _trellis,
    "blobs": _blobs,
    "petals": _petals,
    "scales": _scales,
    "crosses": _crosses,
    "triangles": _triangles,
}
_NOVEL_TEXTURES: dict[str, Callable[[Array, Array], Array]] = {
    "plaid": _plaid,
    "spiral": _spiral,
    "bubbles": _bubbles,
    "dashes": _dashes,
}
_TEXTURES = _BASE_TEXTURES | _NOVEL_TEXTURES
_WALLPAPERS = ("stripes", "checks", "dots", "zigzag", "bricks", "blobs")
# Length of one repeat over the scene's side, sqrt(height * width).
_REPEATS = {"fine": 0.075, "coarse": 0.14}
# Dark and light color, RGB.
_PALETTES = {
    "ink-cream": ((0.11, 0.12, 0.17), (0.96, 0.92, 0.82)),
    "teal-sand": ((0.02, 0.42, 0.44), (0.96, 0.84, 0.58)),
    "navy-coral": ((0.11, 0.17, 0.43), (0.98, 0.52, 0.42)),
    "plum-mustard": ((0.36, 0.09, 0.36), (0.95, 0.75, 0.18)),
    "forest-lime": ((0.04, 0.31, 0.17), (0.74, 0.89, 0.32)),
    "brown-sky": ((0.36, 0.19, 0.09), (0.55, 0.82, 0.97)),
}
_SILHOUETTES = ("disc", "square", "triangle", "hexagon", "star", "flower", "gear", "egg")


@dataclass(frozen=True)
class SceneClass:
    """What all objects of one class share; place, size, rotation, tint and light vary.

    Attributes:
        grain: ``"fine"`` or ``"coarse"``: the length of one repeat of the texture.
        palette: A dark and a light color, e.g. ``"navy-coral"``.
        texture: The pattern, e.g. ``"zigzag"``.
        silhouette: The outline, e.g. ``"star"``.
    """

    grain: str
    palette: str
    texture: str
    silhouette: str

    def __str__(self) -> str:
        return f"{self.grain} {self.palette} {self.texture} {self.silhouette}"


def _classes(textures: Sequence[str]) -> list[SceneClass]:
    """All combinations in a fixed, mixed order, with the silhouettes spread evenly over them."""
    combinations = [
        SceneClass(grain, palette, texture, _SILHOUETTES[(3 * t + 5 * p + g) % len(_SILHOUETTES)])
        for t, texture in enumerate(textures)
        for g, grain in enumerate(_REPEATS)
        for p, palette in enumerate(_PALETTES)
    ]
    # Of the first thirty seeds, the one that spreads all traits most evenly over objects and distractors.
    order = np.random.default_rng(15).permutation(len(combinations))
    return [combinations[i] for i in order]


CLASSES: tuple[SceneClass, ...] = (*_classes(list(_BASE_TEXTURES)), *_classes(list(_NOVEL_TEXTURES)))
"""The 192 classes; a label is a position in this tuple. The first 144 are base, the last 48 novel."""

_OBJECTS = {"base": range(96), "novel": range(144, 168)}
_DISTRACTORS = {"base": range(96, 144), "novel": range(168, 192)}
# First entry of the seed of everything drawn for a split or an episode, so that no two streams meet.
_SPLIT_STREAM = {"base": 0, "novel": 1}
_EPISODE_STREAM = 2


@dataclass(frozen=True)
class Scene:
    """One image and the truth about it.

    Attributes:
        image: float32 ``(3, H, W)``, RGB in [0, 1], not normalized.
        label: The object's class, a position in `CLASSES`.
        mask: bool ``(H, W)``: the pixels that the object touches.
        box: Tight half-open pixel box ``(x0, y0, x1, y1)`` of ``mask``.
        distractor_labels: The classes of the ``D`` distractors.
        distractor_masks: bool ``(D, H, W)``. The masks of one scene do not overlap.
        distractor_boxes: The ``D`` boxes.
    """

    image: Tensor
    label: int
    mask: Tensor
    box: Box
    distractor_labels: tuple[int, ...]
    distractor_masks: Tensor
    distractor_boxes: tuple[Box, ...]


def render_scene(
    label: int,
    distractor_labels: Sequence[int] = (),
    *,
    size: int | tuple[int, int] = 84,
    seed: int | Sequence[int] = 0,
) -> Scene:
    """Draws one scene.

    All lengths are shares of the image's side, sqrt(height * width): the same seed at twice the size is the same scene
    in finer detail.

    Args:
        label: Class of the object, a position in `CLASSES`.
        distractor_labels: Classes of the distractors.
        size: Side, or ``(height, width)``, in pixels; at least 16.
        seed: A non-negative number or several; equal seeds give equal scenes.

    Returns:
        The `Scene`. Object and distractors each cover about 6 to 22 % of the image, 13 % on average; less where more
        than three, or an elongated image, leave no room for that.

    Raises:
        ValueError: If a label is not a position in `CLASSES`, or ``size`` is too small.

    Examples:
        >>> scene = render_scene(3, [100, 120], size=(60, 90), seed=1)
        >>> scene.image.shape, scene.distractor_masks.shape
        (torch.Size([3, 60, 90]), torch.Size([2, 60, 90]))
    """
    height, width = (size, size) if isinstance(size, int) else size
    if min(height, width) < 16:
        raise ValueError(f"size must be at least 16 pixels a side, got {height}x{width}")
    labels = (label, *distractor_labels)
    for one in labels:
        if not 0 <= one < len(CLASSES):
            raise ValueError(f"a label must be in 0..{len(CLASSES) - 1} (see CLASSES), got {one}")

    # Film grain takes as many draws as there are pixels: its own stream leaves the rest the same at every size.
    rng, grain = (np.random.default_rng(stream) for stream in np.random.SeedSequence(seed).spawn(2))
    canvas = _background(rng, height, width)
    canvas += 0.015 * grain.standard_normal(canvas.shape, dtype=np.float32)
    masks = np.zeros((len(labels), height, width), dtype=np.bool_)
    for mask, one, place in zip(masks, labels, _places(rng, labels, height, width), strict=True):
        _draw(rng, canvas, mask, CLASSES[one], *place)
    object_box, *distractor_boxes = map(_tight_box, masks)
    return Scene(
        image=torch.from_numpy(np.clip(canvas, 0.0, 1.0)),
        label=label,
        mask=torch.from_numpy(masks[0]),
        box=object_box,
        distractor_labels=tuple(distractor_labels),
        distractor_masks=torch.from_numpy(masks[1:]),
        distractor_boxes=tuple(distractor_boxes),
    )


def _tight_box(mask: Mask) -> Box:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _outline(silhouette: str, angle: Array) -> Array:
    """Distance from center to edge at each angle, at most 1."""
    if silhouette == "disc":
        return np.ones_like(angle)
    if silhouette == "egg":
        return 0.72 / np.hypot(0.72 * np.cos(angle), np.sin(angle))
    if silhouette == "flower":
        return 0.83 + 0.17 * np.cos(5 * angle)
    if silhouette == "gear":
        return 0.88 + 0.12 * np.tanh(4 * np.cos(8 * angle))
    if silhouette == "star":
        return 0.55 / (1.0 - 0.9 * _from_middle(angle * (5 / (2 * math.pi))))
    corners, roundness = {"triangle": (3, 0.3), "square": (4, 0.1), "hexagon": (6, 0.0)}[silhouette]
    step = 2 * math.pi / corners
    return roundness + (1 - roundness) * math.cos(step / 2) / np.cos(angle % step - step / 2)


@functools.cache
def _share_of_disc(silhouette: str) -> float:
    angle = np.linspace(0, 2 * math.pi, 1440, endpoint=False, dtype=np.float32)
    return float(np.mean(_outline(silhouette, angle) ** 2))


def _places(
    rng: np.random.Generator, labels: Sequence[int], height: int, width: int
) -> list[tuple[float, float, float]]:
    """Center x, center y and outer radius of each object, in pixels: inside the image, no two touching."""
    side = math.sqrt(height * width)
    discs = math.pi * np.array([_share_of_disc(CLASSES[label].silhouette) for label in labels])
    radius = side * np.sqrt(rng.uniform(0.11, 0.24, len(labels)) / discs)
    radius = np.minimum(radius, 0.45 * min(height, width))
    tries = rng.random((400, len(labels), 2))
    first, second = np.triu_indices(len(labels), k=1)
    while True:
        margin = (radius + 0.01 * side)[:, None]
        centers = margin + tries * (np.array([width, height]) - 2 * margin)
        gaps = np.linalg.norm(centers[:, first] - centers[:, second], axis=-1)
        fits = (gaps > radius[first] + radius[second] + 0.01 * side).all(axis=1)
        if fits.any():
            chosen = np.column_stack([centers[fits.argmax()], radius])
            return [(x, y, r) for x, y, r in chosen.tolist()]
        radius = 0.97 * radius


def _draw(
    rng: np.random.Generator, canvas: Array, mask: Mask, kind: SceneClass, cx: float, cy: float, radius: float
) -> None:
    """Paints one object on ``canvas`` (3, H, W) and sets the pixels of ``mask`` (H, W) that it touches."""
    height, width = mask.shape
    side = math.sqrt(height * width)
    rows = slice(max(math.floor(cy - radius), 0), math.ceil(cy + radius))
    columns = slice(max(math.floor(cx - radius), 0), math.ceil(cx + radius))
    dy = (np.arange(height, dtype=np.float32)[rows] + 0.5 - cy)[:, None]
    dx = (np.arange(width, dtype=np.float32)[columns] + 0.5 - cx)[None, :]
    turn = rng.uniform(0, 2 * math.pi)
    x, y = _turned(dx, dy, turn), _turned(dx, dy, turn + math.pi / 2)
    inside = radius * _outline(kind.silhouette, np.arctan2(y, x)) - np.hypot(x, y)

    repeat = _REPEATS[kind.grain] * side * rng.uniform(0.9, 1.1)
    shift_x, shift_y = rng.uniform(-0.5, 0.5), rng.uniform(-0.5, 0.5)
    light_share = _TEXTURES[kind.texture](x / repeat + shift_x, y / repeat + shift_y)
    colors = np.array(_PALETTES[kind.palette]) + rng.normal(0.0, 0.03, (2, 3))
    dark, light = colors.astype(np.float32)[:, :, None, None]
    # Light falls from one side, and a dark rim sets every object off from any ground.
    shade = 1.0 + 0.14 / radius * _turned(dx, dy, rng.uniform(0, 2 * math.pi))
    rim = 0.45 + 0.55 * np.clip(inside / (0.022 * side), 0.0, 1.0)
    # Cover grows inwards from the outline: the soft edge stays within the mask.
    cover = np.clip(inside, 0.0, 1.0)
    patch = canvas[:, rows, columns]
    patch += cover * ((dark + (light - dark) * light_share) * (shade * rim) - patch)
    mask[rows, columns] = inside > 0


def _background(rng: np.random.Generator, height: int, width: int) -> Array:
    """A muted ground (3, H, W): a gradient, clouds, often a faint wallpaper, and scattered clutter."""
    side = math.sqrt(height * width)
    x = ((np.arange(width, dtype=np.float32) + 0.5) / side)[None, :]
    y = ((np.arange(height, dtype=np.float32) + 0.5) / side)[:, None]

    def muted() -> Array:
        color = rng.uniform(0.25, 0.8) + rng.uniform(0.1, 0.35) * (rng.random(3) - 0.5)
        return color.astype(np.float32)[:, None, None]

    slope = _turned(x, y, rng.uniform(0, 2 * math.pi))
    slope = (slope - slope.min()) / (slope.max() - slope.min())
    first, last = muted(), muted()
    canvas = first + (last - first) * slope
    for _ in range(5):
        pace = 2 * math.pi * 0.8 * 7.5 ** rng.random()
        turn, phase = rng.uniform(0, 2 * math.pi), rng.uniform(0, 2 * math.pi)
        cloud = np.sin(pace * math.cos(turn) * x + phase) * np.cos(pace * math.sin(turn) * y + turn)
        canvas += rng.normal(0.0, 0.035, 3).astype(np.float32)[:, None, None] * cloud
    if rng.random() < 0.6:
        turn, repeat = rng.uniform(0, 2 * math.pi), rng.uniform(0.06, 0.25)
        wallpaper = _TEXTURES[_WALLPAPERS[rng.integers(len(_WALLPAPERS))]]
        faint = rng.uniform(0.03, 0.09)
        canvas += faint * (wallpaper(_turned(x, y, turn) / repeat, _turned(x, y, turn + math.pi / 2) / repeat) - 0.5)

    for _ in range(rng.integers(10, 20)):
        cx, cy = rng.uniform(0, width / side), rng.uniform(0, height / side)
        long, thin, turn = rng.uniform(0.04, 0.16), rng.uniform(0.015, 0.06), rng.uniform(0, math.pi)
        color, strength, oval = muted(), rng.uniform(0.4, 1.0), rng.random() < 0.5
        reach = math.hypot(long, thin)
        rows = slice(max(math.floor((cy - reach) * side), 0), math.ceil((cy + reach) * side))
        columns = slice(max(math.floor((cx - reach) * side), 0), math.ceil((cx + reach) * side))
        dx, dy = x[:, columns] - cx, y[rows] - cy
        along, across = np.abs(_turned(dx, dy, turn)) / long, np.abs(_turned(dx, dy, turn + math.pi / 2)) / thin
        edge = np.hypot(along, across) if oval else np.maximum(along, across)
        cover = strength * np.clip((1.0 - edge) * thin * side, 0.0, 1.0)
        patch = canvas[:, rows, columns]
        patch += cover * (color - patch)
    return canvas


@dataclass(frozen=True)
class Episode:
    """A few-shot task: ``way`` classes, ``shot`` support scenes and some query scenes of each.

    Scenes are ordered class by class. No distractor class occurs in both a support and a query scene, and none is one
    of the episode's classes: all that a query shares with a support scene of its class is the object.

    Attributes:
        classes: The ``way`` classes, positions in `CLASSES`.
        support: ``way * shot`` scenes.
        query: ``way * query`` scenes.
    """

    classes: tuple[int, ...]
    support: tuple[Scene, ...]
    query: tuple[Scene, ...]

    @property
    def support_images(self) -> Tensor:
        """float32 ``(way * shot, 3, H, W)``."""
        return torch.stack([scene.image for scene in self.support])

    @property
    def support_labels(self) -> Tensor:
        """int64 ``(way * shot,)``: positions in ``classes``."""
        return torch.tensor([self.classes.index(scene.label) for scene in self.support])

    @property
    def query_images(self) -> Tensor:
        """float32 ``(way * query, 3, H, W)``."""
        return torch.stack([scene.image for scene in self.query])

    @property
    def query_labels(self) -> Tensor:
        """int64 ``(way * query,)``: positions in ``classes``."""
        return torch.tensor([self.classes.index(scene.label) for scene in self.query])


class PlantedScenes(Dataset[tuple[Tensor, int]]):
    """A data set of planted scenes: ``(image, label)`` items, and the whole truth by `scene`.

    Item ``i`` depends on ``seed``, ``split``, ``size`` and ``i`` alone, whatever worker draws it, and shows class
    ``classes[i % len(classes)]``. Scenes are drawn when asked for, in about two milliseconds at 84x84.

    Args:
        split: ``"base"`` (96 classes) or ``"novel"`` (24 classes, of textures that no base scene shows).
        length: Number of scenes.
        size: Side, or ``(height, width)``, in pixels; at least 16.
        seed: A non-negative number.

    Attributes:
        classes: Labels of the objects.
        distractor_classes: Labels of the distractors: another 48 classes of the base split, or 24 of the novel one.
        targets: The label of every item.

    Raises:
        ValueError: If ``split`` is neither of the two.

    Examples:
        >>> scenes = PlantedScenes("novel", length=100, size=(64, 96))
        >>> image, label = scenes[7]
        >>> str(CLASSES[label]), scenes.scene(7).mask.shape
        ('coarse forest-lime dashes gear', torch.Size([64, 96]))
    """

    def __init__(
        self, split: Split = "base", *, length: int = 10_000, size: int | tuple[int, int] = 84, seed: int = 0
    ) -> None:
        if split not in _OBJECTS:
            raise ValueError(f"split must be 'base' or 'novel', got {split!r}")
        self.split = split
        self.length = length
        self.size = size
        self.seed = seed
        self.classes = tuple(_OBJECTS[split])
        self.distractor_classes = tuple(_DISTRACTORS[split])
        self.targets = [self.classes[i % len(self.classes)] for i in range(length)]

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        scene = self.scene(index)
        return scene.image, scene.label

    def scene(self, index: int) -> Scene:
        """The scene of item ``index``, masks and boxes included.

        Raises:
            IndexError: If ``index`` is outside the data set.
        """
        label = self.targets[index]
        seed = (_SPLIT_STREAM[self.split], self.seed, index % self.length)
        return self._draw(label, self.distractor_classes, seed)

    def episode(self, way: int = 5, shot: int = 1, query: int = 15, *, seed: int = 0) -> Episode:
        """Draws a few-shot task from the classes of this split.

        Args:
            way: Number of classes.
            shot: Support scenes of each class.
            query: Query scenes of each class.
            seed: A non-negative number: equal seeds give equal episodes of this data set.

        Returns:
            The `Episode`. Its scenes are drawn anew and are no items of this data set.

        Raises:
            ValueError: If ``way`` exceeds the number of classes, or a count is below one.
        """
        if not 1 <= way <= len(self.classes):
            raise ValueError(f"way must be in 1..{len(self.classes)} for the {self.split} split, got {way}")
        if shot < 1 or query < 1:
            raise ValueError(f"shot and query must be at least 1, got {shot} and {query}")
        stream = (_EPISODE_STREAM, _SPLIT_STREAM[self.split], self.seed, seed)
        rng = np.random.default_rng(stream)
        classes = [int(label) for label in rng.choice(self.classes, way, replace=False)]
        pool = [int(label) for label in rng.permutation(self.distractor_classes)]
        half = len(pool) // 2

        def scenes(each: int, distractors: Sequence[int], part: int) -> tuple[Scene, ...]:
            labels = [label for label in classes for _ in range(each)]
            return tuple(self._draw(label, distractors, (*stream, part, i)) for i, label in enumerate(labels))

        return Episode(tuple(classes), scenes(shot, pool[:half], 0), scenes(query, pool[half:], 1))

    def _draw(self, label: int, distractors: Sequence[int], seed: tuple[int, ...]) -> Scene:
        """A scene with one or two of ``distractors``."""
        rng = np.random.default_rng(seed)
        chosen = rng.choice(distractors, rng.integers(1, 3), replace=False)
        return render_scene(label, [int(one) for one in chosen], size=self.size, seed=(*seed, 1))
