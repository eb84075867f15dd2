from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from captum_fam.visualization.drawing import drawing_of


@pytest.mark.parametrize(
    ("shape", "maps", "kind", "size"),
    [
        ((3, 9, 7), [(1, 3, 2)], "ImageDrawing", (9, 7)),
        ((13, 9, 7), [(3, 2)], "ImageDrawing", (9, 7)),
        ((9, 7), [(3, 2)], "ImageDrawing", (9, 7)),
        ((9, 7), [], "ImageDrawing", (9, 7)),
        ((2, 9), [(1, 3)], "SignalDrawing", (9,)),
        ((2, 9), [(3,), (1, 9)], "SignalDrawing", (9,)),
        ((2, 9), [(1, 3), (2, 3)], "ImageDrawing", (2, 9)),
        ((9,), [], "SignalDrawing", (9,)),
        ((1, 5, 9, 7), [(1, 2, 3, 2)], "VolumeDrawing", (5, 9, 7)),
        ((3, 5, 9, 7), [], "VolumeDrawing", (5, 9, 7)),
    ],
)
def test_the_kind_of_an_input_follows_from_shapes(
    shape: tuple[int, ...], maps: list[tuple[int, ...]], kind: str, size: tuple[int, ...]
) -> None:
    drawing = drawing_of(torch.rand(shape), [torch.rand(one) for one in maps])
    assert (type(drawing).__name__, drawing.size) == (kind, size)


def test_an_array_has_its_channels_last() -> None:
    assert drawing_of(np.ones((9, 7, 13))).size == (9, 7)
    assert drawing_of(np.ones((5, 9, 7, 1))).size == (5, 9, 7)


def test_a_photograph_may_show_a_signal() -> None:
    # Such as a spectrogram, whose columns are the samples.
    assert drawing_of(Image.new("L", (9, 7)), [torch.rand(1, 4)]).size == (7, 9)
