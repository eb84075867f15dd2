from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import pytest
import torch

from captum_fam.visualization import MapFigure, visualize_match
from tests.visualization.figures import PHOTO


def test_figures_leave_nothing_in_pyplot(tmp_path: Path) -> None:
    before = plt.get_fignums()
    visualize_match(PHOTO, {"a": torch.randn(3, 5)}, supports=PHOTO[None], mask=torch.ones(12, 20)).save(
        tmp_path / "a.png"
    )
    assert plt.get_fignums() == before


@pytest.mark.parametrize("suffix", [".png", ".pdf", ".svg"])
def test_a_figure_saves_in_the_format_of_the_suffix_and_makes_its_folder(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / "new" / f"figure{suffix}"
    visualize_match(PHOTO, {"a": torch.randn(3, 5)}).save(path)
    assert [one.name for one in path.parent.iterdir()] == [path.name]
    assert path.read_bytes()[:5] in (b"\x89PNG\r", b"%PDF-", b"<?xml")


def test_a_figure_that_cannot_be_saved_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="xyz"):
        visualize_match(PHOTO, {}).save(tmp_path / "figure.xyz")
    assert list(tmp_path.iterdir()) == []


def test_a_notebook_shows_the_figure() -> None:
    assert visualize_match(PHOTO, {})._repr_png_().startswith(b"\x89PNG")


def test_a_figure_becomes_an_image_of_its_own_pixels() -> None:
    figure = MapFigure(figsize=(0.3, 0.2), dpi=100, facecolor=(1, 0, 0.2))
    image = figure.as_image()
    assert (image.mode, image.size) == ("RGB", (30, 20))
    assert image.getpixel((29, 19)) == (255, 0, 51)
