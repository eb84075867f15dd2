"""Random views of images: crops with changed colors."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2

from captum_fam.experiments.training.images import generator_for

# Second entry of the seeds, which keeps the streams of random numbers apart.
_VIEWS = 13

Augmentations = Literal["v1", "v2"]


class RandomViews(Dataset[tuple[Tensor, int]]):
    """Random views of the images of a data set, which depend only on the seed, the step and the item.

    A view is a crop of at least a share of the area with an aspect ratio of 3/4 to 4/3, mirrored with a probability of
    0.5, with colors that :func:`random_colors` changes. All changes are torchvision's.

    Args:
        dataset: items ``(image, ...)``, images float in [0, 1] of any size, or uint8.
        size: side of the views, or ``(height, width)``, in pixels.
        n_views: views of each image.
        smallest_crop: smallest share of the area that a crop has.
        augmentation: how far colors are changed, see :func:`random_colors`.
        seed: seed of the views.

    Example:
        >>> images = [(torch.rand(3, 20, 30), 0), (torch.rand(3, 9, 9), 1)]
        >>> views, item = RandomViews(images, 16, 2, 0.2, "v2", seed=0)[7, 1]  # step 7, item 1
        >>> views.shape, item
        (torch.Size([2, 3, 16, 16]), 1)
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        size: int | tuple[int, int],
        n_views: int,
        smallest_crop: float,
        augmentation: Augmentations,
        seed: int,
    ) -> None:
        self.dataset = dataset
        self.n_views = n_views
        self.seed = seed
        self._change = v2.Compose(
            [
                v2.RandomResizedCrop(size, scale=(smallest_crop, 1.0), antialias=True),
                v2.RandomHorizontalFlip(),
                v2.ToDtype(torch.float32, scale=True),
                random_colors(augmentation),
            ]
        )

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int]:
        step, item = key
        image = self.dataset[item][0]
        generator = generator_for(self.seed, _VIEWS, step, item)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(generator.initial_seed())
            return torch.stack([self._change(image) for _ in range(self.n_views)]), item


def random_colors(augmentation: Augmentations) -> v2.Transform:
    """The random changes of colors of NPID and MoCo.

    Args:
        augmentation: ``"v1"``: 20 % gray; then brightness, contrast and saturation by factors of 0.6 to 1.4, and hue by
            up to 0.4 turns, in random order (Wu et al., CVPR 2018). ``"v2"``: the factors for 80 % of the images, with
            hue by up to 0.1 turns; then 20 % gray; then for 50 % a blur of 0.1 to 2 pixels (Chen et al., 2020).

    Returns:
        A transform of images ``(3, H, W)`` float in [0, 1], of at least 7 x 7 pixels.

    Example:
        >>> random_colors("v1")(torch.rand(3, 8, 9)).shape
        torch.Size([3, 8, 9])
    """
    if augmentation == "v1":
        return v2.Compose([v2.RandomGrayscale(0.2), v2.ColorJitter(0.4, 0.4, 0.4, 0.4)])
    # The kernel reaches over three of the largest deviations to each side.
    blur = v2.GaussianBlur(kernel_size=13, sigma=(0.1, 2.0))
    return v2.Compose(
        [
            v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
            v2.RandomGrayscale(0.2),
            v2.RandomApply([blur], p=0.5),
        ]
    )
