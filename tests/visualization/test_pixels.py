from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from captum_fam.visualization import ImageLike, to_map, to_rgb, unnormalize
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
