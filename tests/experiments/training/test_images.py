from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.data import Dataset, TensorDataset
from torchvision.transforms import Normalize

from captum_fam.experiments.training import Augmentation, read_images
from captum_fam.experiments.training.images import generator_for, read_stored
from captum_fam.images import IMAGENET_MEAN, IMAGENET_STD

_PLAIN = ((0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255))  # leaves bytes as they are, as floats
_GREY = torch.tensor([0.4914, 0.4822, 0.4465]).view(3, 1, 1)


def _bytes(count: int, height: int = 11, width: int = 7) -> Tensor:
    """No zeros, so that padding is told apart."""
    return torch.randint(1, 256, (count, 3, height, width), dtype=torch.uint8)


class _Counted(Dataset[tuple[Tensor, int]]):
    """Images whose bytes are known, and how often one was read."""

    def __init__(self, images: Tensor) -> None:
        self.images = images
        self.n_read = 0

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        self.n_read += 1
        return self.images[index].float() / 255, index % 3


def test_images_are_the_bytes_that_were_in_the_files() -> None:
    images = torch.arange(256, dtype=torch.uint8).repeat(3, 70, 1, 1).transpose(0, 1)
    read = read_images(_Counted(images))
    assert torch.equal(read.images, images)
    assert read.labels.tolist() == [i % 3 for i in range(70)]


def test_decoded_images_are_kept_in_a_file_and_read_from_it(tmp_path: Path) -> None:
    dataset = _Counted(_bytes(5))
    first = read_images(dataset, tmp_path / "cache" / "images.pt")
    second = read_images(dataset, tmp_path / "cache" / "images.pt")
    assert dataset.n_read == 5
    assert torch.equal(first.images, second.images)
    assert torch.equal(first.labels, second.labels)


def test_without_any_change_a_batch_is_only_normalized() -> None:
    images = _bytes(4)
    made = Augmentation(0, 0.0, 0.0)(images, IMAGENET_MEAN, IMAGENET_STD, [generator_for(0)])
    torch.testing.assert_close(made, Normalize(IMAGENET_MEAN, IMAGENET_STD)(images.float() / 255))


@pytest.mark.parametrize("mirror", [0.0, 1.0])
def test_a_crop_is_a_window_of_the_padded_image_and_all_windows_occur(mirror: float) -> None:
    images, padding = _bytes(300), 2
    made = Augmentation(padding, mirror, 0.0)(images, *_PLAIN, [generator_for(1)])
    seen = set()
    for image, window in zip(images, made, strict=True):
        padded = pad(image, [padding] * 4).float()
        upright = window.flip(2) if mirror else window
        places = [
            (top, left)
            for top in range(5)
            for left in range(5)
            if torch.allclose(padded[:, top : top + 11, left : left + 7], upright, atol=1e-3)
        ]
        assert len(places) == 1
        seen.update(places)
    assert len(seen) == 25


def test_half_of_the_images_are_mirrored() -> None:
    images = _bytes(400)
    made = Augmentation(0, 0.5, 0.0)(images, *_PLAIN, [generator_for(2)])
    mirrored = torch.isclose(made, images.float().flip(3), atol=1e-3).flatten(1).all(1)
    assert torch.isclose(made, images.float(), atol=1e-3).flatten(1).all(1).logical_or(mirrored).all()
    assert 150 < mirrored.sum() < 250  # five standard deviations


def test_erasing_fills_one_rectangle_of_the_tabled_area_and_aspect_with_gray_after_the_normalization() -> None:
    images = _bytes(400, 40, 60)
    made = Augmentation(0, 0.0, 0.5)(images, IMAGENET_MEAN, IMAGENET_STD, [generator_for(3)])
    gray = torch.isclose(made, _GREY).all(1)
    kept = Normalize(IMAGENET_MEAN, IMAGENET_STD)(images.float() / 255)
    erased = gray.flatten(1).any(1)
    assert 150 < erased.sum() < 250
    shares, aspects = [], []
    for mask, image, original in zip(gray[erased], made[erased], kept[erased], strict=True):
        rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
        height, width = int(rows[-1] - rows[0]) + 1, int(columns[-1] - columns[0]) + 1
        assert mask.sum() == height * width
        torch.testing.assert_close(image[:, ~mask], original[:, ~mask])
        shares.append(height * width / 2400)
        aspects.append(height / width)
    # Sides are rounded to whole pixels, so that the limits are met to a pixel.
    assert 0.01 < min(shares) < 0.06
    assert 0.34 < max(shares) < 0.45
    assert 0.25 < min(aspects) < 0.6
    assert 2.0 < max(aspects) < 4.5


def test_what_happens_to_an_image_does_not_depend_on_the_episodes_beside_it() -> None:
    images = _bytes(12)
    together = Augmentation()(images, *_PLAIN, [generator_for(7, i) for i in range(3)])
    alone = [Augmentation()(part, *_PLAIN, [generator_for(7, i)]) for i, part in enumerate(images.split(4))]
    assert torch.equal(together, torch.cat(alone))
    assert not torch.equal(together, Augmentation()(images, *_PLAIN, [generator_for(8, i) for i in range(3)]))


_LABELS = torch.tensor([2, 0, 1])


@pytest.mark.parametrize(
    "stored",
    [
        torch.zeros(3, 4),
        (torch.zeros(3, 4),),
        (torch.tensor(3.0), _LABELS),
        (torch.zeros(2, 4), _LABELS[:2]),
        (torch.zeros(3, 4), _LABELS[:2]),
        (torch.zeros(3, 4), _LABELS.flip(0)),
        (torch.zeros(3, 4), _LABELS.int()),
        (torch.zeros(3, 4), _LABELS[:, None]),
        (torch.zeros(3), _LABELS),
    ],
)
def test_a_file_of_another_data_set_is_refused(stored: Any, tmp_path: Path) -> None:
    dataset: Any = TensorDataset(torch.zeros(3, 3, 8, 8), _LABELS)
    dataset.labels = _LABELS
    file = tmp_path / "features.pt"
    torch.save((torch.ones(3, 4), _LABELS), file)
    features, labels = read_stored(file, dataset, "features", lambda values: values.dim() == 2)
    assert torch.equal(features, torch.ones(3, 4))
    assert torch.equal(labels, _LABELS)
    torch.save(stored, file)
    with pytest.raises(ValueError, match=r"features\.pt holds the features of another data set; delete it"):
        read_stored(file, dataset, "features", lambda values: values.dim() == 2)
