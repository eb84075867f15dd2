from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from PIL import Image

from captum_fam.visualization import ImageLike, to_map, to_rgb, unnormalize
from captum_fam.visualization.pixels import to_slices
from tests.visualization.figures import PHOTO


@pytest.mark.parametrize(
    "image",
    [
        PHOTO[:1],
        PHOTO[0],
        PHOTO[0].numpy(),
        PHOTO[:1].permute(1, 2, 0).numpy(),
        PHOTO.permute(1, 2, 0).numpy(),
        (PHOTO.permute(1, 2, 0).numpy() * 255).astype(np.uint8),
        (PHOTO * 255).byte(),
        Image.fromarray((PHOTO[0].numpy() * 255).astype(np.uint8)),
    ],
    ids=["tensor 1HW", "tensor HW", "array HW", "array HW1", "array HW3", "8-bit array", "8-bit tensor", "gray PIL"],
)
def test_images_of_every_usual_form_show_the_same(image: ImageLike) -> None:
    shown = to_rgb(image)
    assert shown.shape == (12, 20, 3)
    np.testing.assert_allclose(shown[..., 0], PHOTO[0].numpy(), atol=1 / 255)


def test_a_nearly_black_8_bit_image_stays_black() -> None:
    # A largest value of one does not make it an image of floats.
    assert to_rgb(np.ones((5, 5, 3), dtype=np.uint8)).max() == pytest.approx(1 / 255)


def test_unnormalize_undoes_the_normalization() -> None:
    mean, std = torch.tensor([0.2, 0.4, 0.6]), torch.tensor([0.1, 0.2, 0.3])
    batch = PHOTO.expand(2, -1, -1, -1)
    normalized = (batch - mean[:, None, None]) / std[:, None, None]
    torch.testing.assert_close(unnormalize(normalized, mean.tolist(), std.tolist()), batch)
    assert unnormalize(normalized[0] * 50).min() == 0


def test_unnormalize_refuses_another_number_of_channels() -> None:
    with pytest.raises(ValueError, match=r"images .*\(2, 1, 5, 5\).* 3 means"):
        unnormalize(torch.rand(2, 1, 5, 5))


@pytest.mark.parametrize("shape", [(3, 5), (1, 3, 5), (3, 5, 1)])
def test_maps_of_every_usual_shape_are_the_same(shape: tuple[int, ...]) -> None:
    values = torch.randn(3, 5)
    np.testing.assert_array_equal(to_map(values.reshape(shape), (3, 5)), values.double())
    np.testing.assert_array_equal(to_map(values.reshape(shape).numpy(), (3, 5)), values.double())


@pytest.mark.parametrize("shape", [(5,), (1, 5)])
def test_maps_of_signals_are_interpolated_as_captum_does(shape: tuple[int, ...]) -> None:
    values = torch.randn(5)
    expected = torch.nn.functional.interpolate(values.double()[None, None], 13, mode="linear")[0, 0]
    np.testing.assert_allclose(to_map(values.reshape(shape), (13,)), expected)
    np.testing.assert_array_equal(to_map(values.reshape(shape), (5,)), values.double())


@pytest.mark.parametrize("shape", [(2, 3, 5), (1, 2, 3, 5)])
def test_maps_of_volumes_are_interpolated_as_captum_does(shape: tuple[int, ...]) -> None:
    values = torch.randn(2, 3, 5)
    expected = torch.nn.functional.interpolate(values.double()[None, None], (4, 7, 9), mode="trilinear")[0, 0]
    np.testing.assert_allclose(to_map(values.reshape(shape), (4, 7, 9)), expected)


@pytest.mark.parametrize("channels", [2, 4, 13])
def test_other_numbers_of_channels_are_a_mean_of_scaled_channels(channels: int) -> None:
    image = torch.rand(channels, 5, 7) * torch.arange(1, channels + 1)[:, None, None] * 100 - 40
    image[1] = 9.0  # a constant channel has nothing to show
    low, high = image.flatten(1).amin(1), image.flatten(1).amax(1)
    scaled = torch.stack(
        [torch.zeros(5, 7) if c == 1 else (image[c] - low[c]) / (high[c] - low[c]) for c in range(channels)]
    )
    for form in (image, image.movedim(0, 2).numpy(), image.half().float()):
        shown = to_rgb(form)
        assert shown.shape == (5, 7, 3)
        np.testing.assert_allclose(shown, scaled.mean(0)[..., None].expand(-1, -1, 3), atol=2e-3)


@pytest.mark.parametrize(
    "image",
    [torch.rand(20, 30, 3), np.ones((3, 20, 30)), torch.rand(28, 28, 1), np.ones((1, 30, 28))],
    ids=["tensor HW3", "array 3HW", "tensor HW1", "array 1HW"],
)
def test_channels_at_the_wrong_end_are_no_mean_of_many_channels(image: ImageLike) -> None:
    shape = re.escape(str(tuple(image.shape)))
    with pytest.raises(ValueError, match=rf"image .*tensor \(C, H, W\) or an array \(H, W, C\), got shape {shape}"):
        to_rgb(image)


def test_transparency_is_white_and_16_bits_are_scaled() -> None:
    clear = np.zeros((4, 5, 4), dtype=np.uint8)
    clear[0] = [255, 0, 0, 255]
    for form in (clear, Image.fromarray(clear)):
        shown = to_rgb(form)
        np.testing.assert_array_equal(shown[0, 0], [1, 0, 0])
        np.testing.assert_array_equal(shown[1:], 1)
    ramp = np.linspace(0, 65535, 35).reshape(5, 7).astype(np.uint16)
    np.testing.assert_allclose(to_rgb(Image.fromarray(ramp))[..., 0], ramp / 65535, atol=1 / 255)


def test_slices_are_those_of_the_volume_wherever_its_channels_stand() -> None:
    volume = torch.rand(3, 20, 5, 7)
    for form in (volume, volume.permute(1, 2, 3, 0).numpy()):
        slices, positions, depth = to_slices(form)
        assert (positions, depth) == ((1, 3, 6, 8, 11, 13, 16, 18), 20)
        np.testing.assert_allclose(slices, volume.permute(1, 2, 3, 0)[list(positions)])


def test_a_volume_with_channels_at_the_wrong_end_is_refused() -> None:
    with pytest.raises(ValueError, match=r"image .*tensor \(C, D, H, W\) .*\(20, 30, 30, 1\)"):
        to_slices(torch.rand(20, 30, 30, 1))
