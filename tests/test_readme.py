"""The code in the README runs, given what its reader has: images, and weights that are downloaded."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


def test_the_readme_has_code() -> None:
    assert BLOCKS


@pytest.mark.parametrize("code", BLOCKS, ids=lambda code: code.partition("\n")[0])
@pytest.mark.filterwarnings("ignore:more than half of a map's energy:UserWarning")
def test_the_code_of_the_readme_runs(code: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    build = torchvision.models.resnet50
    monkeypatch.setattr(torchvision.models, "resnet50", lambda weights: build(weights=None))
    names: dict[str, Any] = {
        "queries": torch.rand(2, 3, 64, 96),
        "class_images": torch.rand(3, 3, 64, 96),
        "images": torch.rand(8, 3, 64, 96),
        "labels": torch.arange(8) % 4,
    }
    exec(compile(code, "README.md", "exec"), names)
    assert names["heatmap"].shape == (2, 1, 64, 96)
    assert names["scores"](names["queries"]).shape == (2, 4)
