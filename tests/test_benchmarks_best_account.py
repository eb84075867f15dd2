"""The search for the best account: every way to combine maps keeps their sum, and moved views come back."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from benchmarks.best_account.__main__ import CHOSEN
from benchmarks.best_account.collect import SHIFT, VIEWS, laid_back, seen_by
from benchmarks.best_account.variants import variants, window_of


@pytest.fixture
def maps() -> dict[str, Tensor]:
    """Maps of two mosaics of four classes, whose sums are 1 to 8 in every view and layer."""
    generator = torch.Generator().manual_seed(0)
    sides = {"early": 16, "middle": 16, "last": 8}
    sums = torch.arange(1.0, 9.0)[:, None, None, None].double()
    made = {
        f"{view}/{layer}": torch.rand(8, 1, side, side, generator=generator).double()
        for view in (*VIEWS, "runner-up")
        for layer, side in sides.items()
    }
    made = {name: one / one.sum((1, 2, 3), keepdim=True) * sums for name, one in made.items()}
    return {**made, "descriptors": torch.randn(2, 5, 8, 8, generator=generator).double()}


def test_every_way_to_combine_maps_keeps_their_sum(maps: dict[str, Tensor]) -> None:
    combined = {name: combine(maps) for name, combine in variants()}
    assert {*CHOSEN} <= {*combined}
    for name, one in combined.items():
        assert one.sum((1, 2, 3)).tolist() == pytest.approx([*range(1, 9)], rel=1e-5), name


def test_a_window_is_the_odd_one_that_is_nearest_to_its_share() -> None:
    assert [window_of(28, share) for share in (0, 0.11, 0.18, 0.25, 0.46)] == [1, 3, 5, 7, 13]


@pytest.mark.parametrize(("view", "place"), [*zip(VIEWS[1:], [(6, 9), (6, 8), (5, 9), (5, 8)], strict=True)])
def test_what_a_view_shows_elsewhere_is_laid_back(view: str, place: tuple[int, int]) -> None:
    # One position for each SHIFT pixels; the point is at row 6 and column 9 of the view, or mirrored, of 16.
    side, width = 16, 16 * SHIFT
    seen = torch.zeros(1, 1, side, side).double()
    seen[0, 0, 6, 6 if view == "mirrored" else 9] = 2
    back = laid_back(seen, view, width)
    assert float(back.sum()) == pytest.approx(2)
    peak = torch.nn.functional.avg_pool2d(back, back.shape[-1] // side)[0, 0].flatten().argmax()
    assert divmod(int(peak), side) == place


def test_a_moved_image_repeats_its_border() -> None:
    image = torch.arange(float(3 * SHIFT))[None, None, None].expand(1, 1, 3 * SHIFT, -1)
    moved = seen_by(image, "moved right")
    assert moved.shape == image.shape
    assert moved[0, 0, 0, :SHIFT].eq(0).all()
    assert torch.equal(moved[..., SHIFT:], image[..., :-SHIFT])
