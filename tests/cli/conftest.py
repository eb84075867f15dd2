"""A folder of photographs, and the command on a small network of one's own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from captum_fam.cli.main import main
from captum_fam.visualization import MapFigure
from tests.explanation.by_hand import write_pictures

GALLERY = [f"gallery/{bird}/{i}.png" for bird in ("crow", "jay", "wren") for i in range(4)]


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with seven queries, a flat gallery of eight images, and a gallery of three classes."""
    write_pictures(tmp_path, [f"queries/q{i}.png" for i in range(7)], seed=10)
    write_pictures(tmp_path, [f"flat/f{i}.png" for i in range(8)], seed=30)
    write_pictures(tmp_path, GALLERY, seed=50)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def explain_small(photos: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """``explain_small(*words)`` on a small network, with rough figures."""
    monkeypatch.setattr(MapFigure, "_write", lambda self, target, **_: self.savefig(target, dpi=20))
    model = ["--model", "tests.explanation.by_hand:small_model", "--device", "cpu", "--quiet"]
    return lambda *words: main(["explain", "--out", "out", *map(str, words), *model])
