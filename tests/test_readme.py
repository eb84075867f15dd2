"""The code in the README runs from top to bottom, given what its reader has: images, and downloaded weights."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision

from captum_fam.attr import METHODS, AttributionDetails

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


def test_the_readme_has_code() -> None:
    assert len(BLOCKS) > 1


@pytest.mark.filterwarnings("ignore:more than half of a map's energy:UserWarning")
def test_the_code_of_the_readme_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    build = torchvision.models.resnet50
    monkeypatch.setattr(torchvision.models, "resnet50", lambda weights: build(weights=None))
    known = dict(METHODS)
    names: dict[str, Any] = {
        "queries": torch.rand(2, 3, 64, 96),
        "class_images": torch.rand(3, 3, 64, 96),
        "images": torch.rand(8, 3, 64, 96),
        "labels": torch.arange(8) % 4,
    }
    # One after the other, as a later block uses what an earlier one has made.
    for code in BLOCKS:
        exec(compile(code, "README.md", "exec"), names)
    (added,) = METHODS.keys() - known.keys()
    METHODS.pop(added)
    assert names["heatmap"].shape == (2, 1, 64, 96)
    assert names["class_scores"].shape == (2, 4)
    assert isinstance(names["details"], AttributionDetails)
    assert names["details"].comparison.similarities.shape == (2, 3)
    assert names["why"].method == added


def test_links_of_the_readme_lead_somewhere() -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", README)
    assert links
    assert not [link for link in links if not (Path(__file__).parents[1] / link).exists()]
