"""Drawing one planted scene, with the exact masks of its objects."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from captum_fam.demo.scene_classes import CLASSES, PALETTES, REPEATS, SceneClass, outline, share_of_disc
from captum_fam.demo.textures import TEXTURES, WALLPAPERS, Array, turned

Mask = npt.NDArray[np.bool_]
Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Scene:
    """One image, and the class, mask and box of each of its objects.

    Attributes:
        image: float32 ``(3, H, W)``, RGB in [0, 1], not normalized.
        label: the class of the object, a position in :data:`~captum_fam.demo.scene_classes.CLASSES`.
        mask: the pixels that the object covers wholly or in part, bool ``(H, W)``.
        box: the smallest half-open box ``(x0, y0, x1, y1)`` around ``mask``, in pixels.
        distractor_labels: the classes of the D distractors.
        distractor_masks: the pixels of each distractor, bool ``(D, H, W)``; no two masks of a scene overlap.
        distractor_boxes: the box of each distractor.
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
    """Draw one scene.

    All lengths are fractions of the side sqrt(height * width) of the image, so that the same seed gives the same scene
    at every size, with more detail in a larger image.

    Args:
        label: the class of the object, a position in :data:`~captum_fam.demo.scene_classes.CLASSES`.
        distractor_labels: the classes of the distractors. Default: no distractors.
        size: the side, or ``(height, width)``, in pixels, at least 16. Default: 84.
        seed: a non-negative number or a sequence of such numbers; equal seeds give equal scenes. Default: 0.

    Returns:
        The scene. The object and each distractor cover about 6 to 22 % of the image, 13 % on average, and less if many
        objects, or a long and narrow image, leave too little room.

    Raises:
        ValueError: for a label that is no position in ``CLASSES``, or a side below 16 pixels.

    Example:
        >>> scene = render_scene(3, [100, 120], size=(60, 90), seed=1)
        >>> scene.image.shape, scene.distractor_masks.shape
        (torch.Size([3, 60, 90]), torch.Size([2, 60, 90]))
    """
    height, width = (size, size) if isinstance(size, int) else size
    if min(height, width) < 16:
        raise ValueError(f"size must be at least 16 pixels per side, got {height}x{width}")
    labels = (label, *distractor_labels)
    unknown = [number for number in labels if not 0 <= number < len(CLASSES)]
    if unknown:
        raise ValueError(f"a label must be in 0..{len(CLASSES) - 1} (see CLASSES), got {unknown[0]}")

    # Film grain needs a random number per pixel. It has a random stream of its own, so that the rest of the scene is
    # the same at every size.
    rng, grain = (np.random.default_rng(stream) for stream in np.random.SeedSequence(seed).spawn(2))
    canvas = _background(rng, height, width)
    canvas += 0.015 * grain.standard_normal(canvas.shape, dtype=np.float32)
    masks = np.zeros((len(labels), height, width), dtype=np.bool_)
    for mask, number, place in zip(masks, labels, _places(rng, labels, height, width), strict=True):
        _paint(rng, canvas, mask, CLASSES[number], *place)
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
    """The smallest half-open box around the pixels of a mask."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _places(
    rng: np.random.Generator, labels: Sequence[int], height: int, width: int
) -> list[tuple[float, float, float]]:
    """Center x, center y and outer radius of each object in pixels; all are inside the image, and none touch."""
    side = math.sqrt(height * width)
    discs = math.pi * np.array([share_of_disc(CLASSES[label].silhouette) for label in labels])
    radius = side * np.sqrt(rng.uniform(0.11, 0.24, len(labels)) / discs)
    radius = np.minimum(radius, 0.45 * min(height, width))
    # All tries are drawn at once, so that later random numbers do not depend on the number of failed tries.
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
        radius = 0.97 * radius  # in no try was there room for all objects: make them smaller


def _paint(
    rng: np.random.Generator, canvas: Array, mask: Mask, kind: SceneClass, cx: float, cy: float, radius: float
) -> None:
    """Paint one object on ``canvas`` (3, H, W) and set the pixels of ``mask`` (H, W) that it touches."""
    height, width = mask.shape
    side = math.sqrt(height * width)
    rows = slice(max(math.floor(cy - radius), 0), math.ceil(cy + radius))
    columns = slice(max(math.floor(cx - radius), 0), math.ceil(cx + radius))
    dy = (np.arange(height, dtype=np.float32)[rows] + 0.5 - cy)[:, None]
    dx = (np.arange(width, dtype=np.float32)[columns] + 0.5 - cx)[None, :]
    turn = rng.uniform(0, 2 * math.pi)
    x, y = turned(dx, dy, turn), turned(dx, dy, turn + math.pi / 2)
    # The distance from the outline in pixels: positive inside the object, negative outside.
    inside = radius * outline(kind.silhouette, np.arctan2(y, x)) - np.hypot(x, y)

    repeat = REPEATS[kind.grain] * side * rng.uniform(0.9, 1.1)
    shift_x, shift_y = rng.uniform(-0.5, 0.5), rng.uniform(-0.5, 0.5)
    light_share = TEXTURES[kind.texture](x / repeat + shift_x, y / repeat + shift_y)
    colors = np.array(PALETTES[kind.palette]) + rng.normal(0.0, 0.03, (2, 3))
    dark, light = colors.astype(np.float32)[:, :, None, None]
    # Light comes from one side, and a dark rim separates every object from any background.
    shade = 1.0 + 0.14 / radius * turned(dx, dy, rng.uniform(0, 2 * math.pi))
    rim = 0.45 + 0.55 * np.clip(inside / (0.022 * side), 0.0, 1.0)
    # Opacity rises from 0 at the outline to 1 one pixel further in, so that the soft edge stays within the mask.
    cover = np.clip(inside, 0.0, 1.0)
    patch = canvas[:, rows, columns]
    patch += cover * ((dark + (light - dark) * light_share) * (shade * rim) - patch)
    mask[rows, columns] = inside > 0


def _background(rng: np.random.Generator, height: int, width: int) -> Array:
    """A background of muted colors, (3, H, W): a gradient, clouds, often a faint wallpaper, and scattered clutter."""
    side = math.sqrt(height * width)
    x = ((np.arange(width, dtype=np.float32) + 0.5) / side)[None, :]
    y = ((np.arange(height, dtype=np.float32) + 0.5) / side)[:, None]

    def muted() -> Array:
        """A random color of low saturation, (3, 1, 1)."""
        color = rng.uniform(0.25, 0.8) + rng.uniform(0.1, 0.35) * (rng.random(3) - 0.5)
        return color.astype(np.float32)[:, None, None]

    slope = turned(x, y, rng.uniform(0, 2 * math.pi))
    slope = (slope - slope.min()) / (slope.max() - slope.min())
    first, last = muted(), muted()
    canvas = first + (last - first) * slope
    for _ in range(5):
        # Between 0.8 and 6 waves per side, so that there are large and small clouds.
        pace = 2 * math.pi * 0.8 * 7.5 ** rng.random()
        turn, phase = rng.uniform(0, 2 * math.pi), rng.uniform(0, 2 * math.pi)
        cloud = np.sin(pace * math.cos(turn) * x + phase) * np.cos(pace * math.sin(turn) * y + turn)
        canvas += rng.normal(0.0, 0.035, 3).astype(np.float32)[:, None, None] * cloud
    if rng.random() < 0.6:
        turn, repeat = rng.uniform(0, 2 * math.pi), rng.uniform(0.06, 0.25)
        wallpaper = TEXTURES[WALLPAPERS[rng.integers(len(WALLPAPERS))]]
        faint = rng.uniform(0.03, 0.09)
        canvas += faint * (wallpaper(turned(x, y, turn) / repeat, turned(x, y, turn + math.pi / 2) / repeat) - 0.5)

    for _ in range(rng.integers(10, 20)):
        cx, cy = rng.uniform(0, width / side), rng.uniform(0, height / side)
        long, thin, turn = rng.uniform(0.04, 0.16), rng.uniform(0.015, 0.06), rng.uniform(0, math.pi)
        color, strength, oval = muted(), rng.uniform(0.4, 1.0), rng.random() < 0.5
        reach = math.hypot(long, thin)
        rows = slice(max(math.floor((cy - reach) * side), 0), math.ceil((cy + reach) * side))
        columns = slice(max(math.floor((cx - reach) * side), 0), math.ceil((cx + reach) * side))
        dx, dy = x[:, columns] - cx, y[rows] - cy
        along, across = np.abs(turned(dx, dy, turn)) / long, np.abs(turned(dx, dy, turn + math.pi / 2)) / thin
        edge = np.hypot(along, across) if oval else np.maximum(along, across)
        cover = strength * np.clip((1.0 - edge) * thin * side, 0.0, 1.0)
        patch = canvas[:, rows, columns]
        patch += cover * (color - patch)
    return canvas
