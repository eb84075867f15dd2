"""The code of docs/looking.md runs from top to bottom, given what its reader has; FiftyOne is a stand-in."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import captum_fam
from captum_fam.demo import PlantedScenes
from captum_fam.images import tensor_to_image
from captum_fam.preprocessing import Preprocessing

PAGE = (Path(__file__).parents[1] / "docs" / "looking.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


def scene(number: int) -> Image.Image:
    """A photograph that is wider than high."""
    return tensor_to_image(PlantedScenes("novel", length=40, size=(60, 90))[number][0])


class Sample(dict[str, Any]):
    """A sample of a data set of FiftyOne."""

    def __init__(self, filepath: str) -> None:
        super().__init__()
        self.filepath = filepath
        self.is_saved = False

    def save(self) -> None:
        self.is_saved = True


class Samples(list[Sample]):
    """A data set of FiftyOne."""

    def values(self, field: str) -> list[Any]:
        return [getattr(sample, field) for sample in self]


@pytest.fixture
def names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What a reader has: a model, files and folders, tensors, a data set of FiftyOne."""
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(("wren", "wren", "wren", "jay", "jay", "jay")):
        Path("birds", name).mkdir(parents=True, exist_ok=True)
        scene(number).save(Path("birds", name, f"{number}.png"))
    Path("archive").mkdir()
    for number in range(6, 16):
        scene(number).save(Path("archive", f"{number}.png"))
    for number, name in enumerate(("query", "monday", "tuesday", "stranger"), start=20):
        scene(number).save(f"{name}.png")
    fiftyone = ModuleType("fiftyone")
    fiftyone.Heatmap = SimpleNamespace  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "fiftyone", fiftyone)
    net = captum_fam.create_model("demo")
    monkeypatch.setattr(captum_fam, "create_model", lambda name, weights: net)
    generator = torch.Generator().manual_seed(0)
    return {
        "net": net,
        "images": torch.rand(3, 3, 84, 84, generator=generator),
        "class_images": torch.rand(4, 3, 84, 84, generator=generator),
        "labels": ["wren", "wren", "jay", "jay"],
        "dataset": Samples([Sample("query.png"), Sample("stranger.png")]),
    }


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_code_of_the_page_runs(names: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("pandas")
    for code in BLOCKS:
        exec(compile(code, "docs/looking.md", "exec"), names)
        if 'against="threshold"' in code:
            pair = names["pair"]
            assert pair.score == pytest.approx(pair.similarity - 0.8, abs=1e-5)
            assert float(pair.query_map.sum()) == pytest.approx(pair.score * pair.query_coverage, abs=1e-5)
            assert float(pair.support_map.sum()) == pytest.approx(pair.support_score * pair.support_coverage, abs=1e-5)
    for name in ("why.png", "pair.png", "why-not.png", "why-not.html", "results/manifest.json"):
        assert Path(name).stat().st_size
    assert len(names["again"]) == len(names["table"]) == 3
    assert names["lines"]
    assert all(match.mutual for match in names["lines"])
    printed = capsys.readouterr().out
    assert "Explanation(3 queries, similarity-cam, beside: fam" in printed
    for sample in names["dataset"]:
        heat = sample["why"]
        assert sample.is_saved
        assert heat.map.shape == (60, 90)
        assert heat.map.dtype == np.float32
        assert heat.range[0] == -heat.range[1] < 0
        assert np.abs(heat.map).max() <= heat.range[1]


def test_a_heat_map_lies_where_the_model_looked(names: dict[str, Any]) -> None:
    (code,) = [code for code in BLOCKS if "def heat_map" in code]
    exec(compile(code, "docs/looking.md", "exec"), names)
    # Left and right halves of the input have the values 1 and 3.
    halves = torch.tensor([1.0, 3.0]).repeat_interleave(20).expand(1, 1, 40, 40)
    why = SimpleNamespace(maps=halves)

    def columns(resize: Any) -> list[float]:
        array = names["heat_map"](why, 0, "query.png", Preprocessing(size=40, resize=resize))
        assert array.shape == (60, 90)
        return [float(one) for one in array[30, [0, 10, 20, 70, 80, 89]]]

    assert columns("squash") == [1, 1, 1, 3, 3, 3]
    # The crop is the middle square, from column 15 to column 75.
    assert columns("crop") == [0, 0, 1, 3, 0, 0]
    # Borders above and below make the photograph square; the map is cut to the photograph.
    assert columns("pad") == [1, 1, 1, 3, 3, 3]
