from __future__ import annotations

import pytest
import torch
from torchvision.transforms.v2 import functional as tv

from captum_fam.embedding.ranks import Ranks
from captum_fam.experiments.training.contrastive.batches import EpochBatches
from captum_fam.experiments.training.contrastive.color_changes import change_colors
from captum_fam.experiments.training.contrastive.views import RandomViews, draw_colors

_SAME = [1.0, 1.0, 1.0, 0.0, 0.0, 0.0]


def _with(**changes: float) -> torch.Tensor:
    names = ("brightness", "contrast", "saturation", "hue", "gray", "blur")
    return torch.tensor([changes.get(name, same) for name, same in zip(names, _SAME, strict=True)])


def test_a_change_of_nothing_gives_the_image() -> None:
    images = torch.rand(2, 3, 7, 5)
    torch.testing.assert_close(change_colors(images, torch.tensor([_SAME] * 2)), images, rtol=0, atol=1e-5)


@pytest.mark.parametrize("factor", [0.6, 0.93])
def test_brightness_contrast_and_saturation_are_those_of_torchvision(factor: float) -> None:
    images = 0.2 + 0.6 * torch.rand(3, 3, 9, 6)
    colors = torch.stack([_with(brightness=factor), _with(contrast=factor), _with(saturation=factor)])
    changed = change_colors(images, colors)
    functions = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation)
    for found, image, function in zip(changed, images, functions, strict=True):
        # torchvision has one more digit in the weights of its gray.
        torch.testing.assert_close(found, function(image, factor), rtol=0, atol=2e-3)


def test_factors_come_one_after_the_other_and_values_are_cut_once() -> None:
    image = torch.rand(3, 5, 4)
    found = change_colors(image[None], _with(brightness=1.4, contrast=0.6)[None])[0]
    bright = image * 1.4
    gray = (0.299 * bright[0] + 0.587 * bright[1] + 0.114 * bright[2]).mean()
    torch.testing.assert_close(found, (0.6 * bright + 0.4 * gray).clamp(0, 1), rtol=0, atol=1e-5)


def test_a_gray_image_is_the_weighted_sum_whatever_its_hue() -> None:
    image = torch.rand(3, 5, 4)
    found = change_colors(image[None], _with(gray=1.0, hue=0.3)[None])[0]
    torch.testing.assert_close(found, tv.rgb_to_grayscale(image, 3), rtol=0, atol=1e-3)


def test_a_turn_of_the_hue_keeps_the_gray_and_a_whole_turn_the_color() -> None:
    image = 0.4 + 0.2 * torch.rand(3, 5, 4)
    turned, whole = change_colors(image.expand(2, -1, -1, -1), torch.stack([_with(hue=0.5), _with(hue=1.0)]))
    weights = torch.tensor([0.299, 0.587, 0.114])
    gray = torch.einsum("c,chw->hw", weights, image)
    torch.testing.assert_close(torch.einsum("c,chw->hw", weights, turned), gray, rtol=0, atol=1e-3)
    # Half a turn gives the opposite color.
    torch.testing.assert_close(turned - gray, gray - image, rtol=0, atol=2e-3)
    torch.testing.assert_close(whole, image, rtol=0, atol=1e-5)


def test_only_chosen_images_are_blurred_each_by_its_own_deviation() -> None:
    images = torch.rand(3, 3, 64, 45)
    found = change_colors(images, torch.stack([_with(blur=0.7), _with(), _with(blur=2.0)]))
    torch.testing.assert_close(found[1], images[1], rtol=0, atol=1e-5)
    # The kernel reaches over a twentieth of the shorter side in each direction.
    for number, deviation in ((0, 0.7), (2, 2.0)):
        expected = tv.gaussian_blur(images[number], [5, 5], [deviation, deviation])
        torch.testing.assert_close(found[number], expected, rtol=0, atol=1e-5)


def test_views_depend_on_seed_step_and_item_only_and_leave_the_random_numbers() -> None:
    images = [(torch.rand(3, 20, 31), 0), (torch.rand(3, 9, 12), 1)]
    views = RandomViews(images, (16, 12), 2, 0.2, "v2", seed=3)
    state = torch.get_rng_state()
    first, colors, item = views[5, 1]
    assert torch.equal(state, torch.get_rng_state())
    assert (first.shape, item) == ((2, 3, 16, 12), 1)
    assert not torch.equal(first[0], first[1])
    torch.manual_seed(8)
    again, same_colors, _ = views[5, 1]
    assert torch.equal(first, again)
    assert torch.equal(colors, same_colors)
    for other in (views[6, 1], RandomViews(images, (16, 12), 2, 0.2, "v2", seed=4)[5, 1]):
        assert not torch.equal(other[0], first)


def test_bytes_and_floats_give_the_same_views() -> None:
    image = (torch.rand(3, 12, 14) * 255).byte()
    made = [RandomViews([(x, 0)], 12, 1, 0.9, "v1", seed=0)[0, 0][0] for x in (image, image / 255)]
    # Bytes are rounded after the resizing.
    torch.testing.assert_close(made[0], made[1], rtol=0, atol=1 / 255)


def test_colors_are_drawn_as_published() -> None:
    one, two = (torch.stack([draw_colors(kind) for _ in range(4000)]) for kind in ("v1", "v2"))  # type: ignore[arg-type]
    for colors, hue in ((one, 0.4), (two, 0.1)):
        assert 0.6 <= colors[:, :3].min() < 0.61
        assert 1.39 < colors[:, :3].max() <= 1.4
        assert colors[:, 3].abs().max() == pytest.approx(hue, rel=0.02)
        assert colors[:, 4].mean() == pytest.approx(0.2, abs=0.03)
    assert not one[:, 5].any()
    blurred = two[:, 5] > 0
    assert blurred.float().mean() == pytest.approx(0.5, abs=0.03)
    assert 0.1 <= two[blurred, 5].min() < 0.15
    assert 1.95 < two[:, 5].max() <= 2
    assert (two[:, :4] == torch.tensor(_SAME[:4])).all(1).float().mean() == pytest.approx(0.2, abs=0.03)


def test_an_epoch_has_every_image_at_most_once_and_processes_share_its_batches() -> None:
    whole = list(EpochBatches(22, 6, 2, 0, Ranks()))
    assert [step for batch in whole for step, _ in batch] == [6] * 6 + [7] * 6 + [8] * 6
    items = [item for batch in whole for _, item in batch]
    assert len(set(items)) == 18
    halves = [list(EpochBatches(22, 6, 2, 0, Ranks(rank, 2))) for rank in range(2)]
    assert [one + two for one, two in zip(*halves, strict=True)] == whole
    assert list(EpochBatches(22, 6, 3, 0, Ranks())) != [[(s + 3, i) for s, i in batch] for batch in whole]
