from __future__ import annotations

import numpy as np
import torch

from captum_fam.visualization import MapFigure
from captum_fam.visualization.image import ImageDrawing


def test_the_mean_of_the_channels_is_drawn_and_said() -> None:
    image = torch.randn(13, 7, 11) * 50
    drawing = ImageDrawing.of(image)
    assert drawing.note == "mean of 13 channels"
    drawing.draw(ax := MapFigure().add_subplot())
    low, high = image.flatten(1).amin(1)[:, None, None], image.flatten(1).amax(1)[:, None, None]
    expected = ((image - low) / (high - low)).mean(0)
    shown = np.asarray(ax.images[0].get_array())
    np.testing.assert_allclose(shown, expected[..., None].expand(-1, -1, 3), atol=1e-6)


def test_images_of_one_and_three_channels_have_nothing_to_say() -> None:
    assert [ImageDrawing.of(torch.rand(channels, 7, 11)).note for channels in (1, 3)] == ["", ""]
