"""Random views of images: a crop of each, and changes of its colors, which are drawn with it."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2

from captum_fam.experiments.training.images import generator_for

# Second entry of the seeds, which keeps the streams of random numbers apart.
_VIEWS = 13


class RandomViews(Dataset[tuple[Tensor, Tensor, int]]):
    """Random crops of the images of a data set, which depend only on the seed, the step, the item and the view.

    A crop has at least a share of the area and an aspect ratio of 3/4 to 4/3, and is mirrored with a probability of
    0.5. Colors are changed later, for a whole batch at once, by :func:`change_colors`.

    Args:
        dataset: items ``(image, ...)``, images float in [0, 1] of any size, or uint8.
        size: side of the views, or ``(height, width)``, in pixels.
        n_views: views of each image.
        smallest_crop: smallest share of the area that a crop has.
        augmentation: how far colors are changed, see :func:`draw_colors`.
        seed: seed of the views.

    Example:
        >>> images = [(torch.rand(3, 20, 30), 0), (torch.rand(3, 9, 9), 1)]
        >>> views, colors, item = RandomViews(images, 16, 2, 0.2, "v2", seed=0)[7, 1]  # step 7, item 1
        >>> views.shape, colors.shape, item
        (torch.Size([2, 3, 16, 16]), torch.Size([2, 6]), 1)
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        size: int | tuple[int, int],
        n_views: int,
        smallest_crop: float,
        augmentation: Literal["v1", "v2"],
        seed: int,
    ) -> None:
        self.dataset = dataset
        self.n_views = n_views
        self.augmentation = augmentation
        self.seed = seed
        self._crop = v2.Compose(
            [
                v2.RandomResizedCrop(size, scale=(smallest_crop, 1.0), antialias=True),
                v2.RandomHorizontalFlip(),
                v2.ToDtype(torch.float32, scale=True),
            ]
        )

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Tensor, int]:
        step, item = key
        image = self.dataset[item][0]
        generator = generator_for(self.seed, _VIEWS, step, item)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(generator.initial_seed())
            views = torch.stack([self._crop(image) for _ in range(self.n_views)])
            colors = torch.stack([draw_colors(self.augmentation) for _ in range(self.n_views)])
        return views, colors, item


def draw_colors(augmentation: Literal["v1", "v2"]) -> Tensor:
    """Draw a change of the colors of a view, with random numbers of torch.

    Args:
        augmentation: ``"v1"``: brightness, contrast and saturation by factors of 0.6 to 1.4, hue by up to 0.4 turns,
            and 20 % gray (Wu et al., CVPR 2018). ``"v2"``: for 80 % of the views, with hue by up to 0.1 turns, and a
            blur of 0.1 to 2 pixels for 50 % (Chen et al., 2020).

    Returns:
        Factors of brightness, contrast and saturation, turns of the hue, whether the view is gray, and the standard
        deviation of the blur in pixels, 0 for none: float32 ``(6,)``.

    Example:
        >>> draw_colors("v1").shape
        torch.Size([6])
    """
    draws = torch.rand(8)
    colors = torch.empty(6)
    colors[:3] = 0.6 + 0.8 * draws[:3]
    colors[3] = (0.8 if augmentation == "v1" else 0.2) * (draws[3] - 0.5)
    if augmentation == "v2" and draws[4] >= 0.8:
        colors[:4] = torch.tensor([1.0, 1.0, 1.0, 0.0])
    colors[4] = draws[5] < 0.2
    colors[5] = 0.1 + 1.9 * draws[6] if augmentation == "v2" and draws[7] < 0.5 else 0.0
    return colors
