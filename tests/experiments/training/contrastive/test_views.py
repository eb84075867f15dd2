from __future__ import annotations

import pytest
import torch
from torch import Tensor

from captum_fam.embedding.ranks import Ranks
from captum_fam.experiments.training.contrastive.batches import EpochBatches
from captum_fam.experiments.training.contrastive.views import RandomViews, random_colors


def test_views_depend_on_seed_step_and_item_only_and_leave_the_random_numbers() -> None:
    images = [(torch.rand(3, 20, 31), 0), (torch.rand(3, 9, 12), 1)]
    views = RandomViews(images, (16, 12), 2, 0.2, "v2", seed=3)
    state = torch.get_rng_state()
    first, item = views[5, 1]
    assert torch.equal(state, torch.get_rng_state())
    assert (first.shape, item) == ((2, 3, 16, 12), 1)
    assert not torch.equal(first[0], first[1])
    torch.manual_seed(8)
    assert torch.equal(first, views[5, 1][0])
    for other in (views[6, 1], RandomViews(images, (16, 12), 2, 0.2, "v2", seed=4)[5, 1]):
        assert not torch.equal(other[0], first)


def test_bytes_and_floats_give_the_same_views() -> None:
    image = torch.arange(12 * 14, dtype=torch.uint8).view(1, 12, 14).expand(3, -1, -1)
    made = [RandomViews([(x, 0)], 12, 1, 0.9, "v2", seed=1)[0, 0][0] for x in (image, image / 255)]
    # Bytes are rounded after the resizing, and colors change by up to 1.4 x 1.4 x 1.4.
    torch.testing.assert_close(made[0], made[1], rtol=0, atol=3 / 255)


def _is_gray(images: Tensor) -> Tensor:
    return (images == images[:, :1]).all(1).flatten(1).all(1)


def _changed(augmentation: str, image: Tensor, count: int) -> Tensor:
    change = random_colors(augmentation)  # type: ignore[arg-type]
    return torch.stack([change(image) for _ in range(count)])


def test_colors_are_changed_as_often_and_as_far_as_published() -> None:
    # One color, so that a blur changes nothing, and contrast as little as rounding.
    image = torch.tensor([0.6, 0.4, 0.4]).view(3, 1, 1).expand(3, 7, 7)
    one, two = (_changed(kind, image, 600) for kind in ("v1", "v2"))
    for views, hue, unchanged in ((one, 0.4, 0.0), (two, 0.1, 0.2 * 0.8)):
        gray = _is_gray(views)
        assert gray.float().mean() == pytest.approx(0.2, abs=0.05)
        same = torch.isclose(views, image, atol=1e-6).flatten(1).all(1)
        assert same.float().mean() == pytest.approx(unchanged, abs=0.05)
        red, green, blue = (part[:, 0, 0] for part in views[~gray].unbind(1))
        # A turn of red by less than a sixth leaves red the largest channel, and moves another by at most 6 x hue.
        if hue == 0.1:
            assert (red >= torch.maximum(green, blue)).all()
            spread = (torch.maximum(green, blue) - torch.minimum(green, blue)) / (red - torch.minimum(green, blue))
            assert 0.5 < spread.max() <= 6 * hue + 1e-3
        else:
            assert {int(part) for part in torch.stack([red, green, blue]).argmax(0)} == {0, 1, 2}


def test_half_of_the_views_of_version_2_are_blurred_over_three_deviations() -> None:
    # Gray, and neither black nor white: so all other changes only scale and shift the point.
    image = torch.full((3, 15, 21), 0.4)
    image[:, 7, 10] = 0.6
    views = _changed("v2", image, 200)
    points = (views - views[:, :, :1, :1]) / (views[:, :1, 7, 10] - views[:, :1, 0, 0])[..., None, None]
    blurred = points[points[:, 0, 7, 11] > 0.005]
    # The neighbor gets less for a deviation below 0.3 pixels; deviations are 0.1 to 2 pixels.
    assert len(blurred) / 200 == pytest.approx(0.5 * 1.7 / 1.9, abs=0.1)
    deviations = (-0.5 / blurred[:, 0, 7, 11].log()).sqrt()
    assert 0.29 < deviations.min() < 0.5
    assert 1.8 < deviations.max() < 2.01
    for view, deviation in zip(blurred, deviations, strict=True):
        rows, columns = torch.meshgrid(torch.arange(-7.0, 8), torch.arange(-10.0, 11), indexing="ij")
        expected = (-(rows**2 + columns**2) / (2 * deviation**2)).exp()
        expected[(rows.abs() > 6) | (columns.abs() > 6)] = 0
        torch.testing.assert_close(view, expected.expand(3, -1, -1), rtol=0, atol=1e-3)


def test_an_epoch_has_every_image_at_most_once_and_processes_share_its_batches() -> None:
    whole = list(EpochBatches(22, 6, 2, 0, Ranks()))
    assert [step for batch in whole for step, _ in batch] == [6] * 6 + [7] * 6 + [8] * 6
    items = [item for batch in whole for _, item in batch]
    assert len(set(items)) == 18
    halves = [list(EpochBatches(22, 6, 2, 0, Ranks(rank, 2))) for rank in range(2)]
    assert [one + two for one, two in zip(*halves, strict=True)] == whole
    assert list(EpochBatches(22, 6, 3, 0, Ranks())) != [[(s + 3, i) for s, i in batch] for batch in whole]
