"""The code of docs/your-model.md runs from top to bottom, given what its reader has."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

PAGE = (Path(__file__).parents[1] / "docs" / "your-model.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


def photo(seed: int) -> Image.Image:
    pixels = torch.rand(40, 30, 3, generator=torch.Generator().manual_seed(seed))
    return Image.fromarray((pixels * 255).byte().numpy())


@pytest.mark.filterwarnings("ignore:more than half of a map's energy", "ignore:the preprocessing of")
def test_the_code_of_the_page_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(("wren", "wren", "jay", "jay")):
        folder = Path("birds", name)
        folder.mkdir(parents=True, exist_ok=True)
        photo(number).save(folder / f"{number}.png")
    for number, name in enumerate(("query", "partner", "wren-1", "wren-2"), start=10):
        photo(number).save(f"{name}.png")
    features = nn.Sequential(nn.Conv2d(3, 8, 5, stride=4), nn.ReLU())
    model = nn.Sequential()
    model.add_module("layer4", features)
    model.add_module("pooled", nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    names: dict[str, Any] = {
        "model": model.eval(),
        "photo": photo(20),
        "image_tower": model,
        "text_embeddings": torch.rand(2, 8),
        "images": torch.rand(3, 3, 64, 48),
        "class_images": torch.rand(2, 3, 256, 128),
        "ids": np.arange(3),
        "pixels": np.random.default_rng(0).integers(0, 255, (3, 50, 40, 3), np.uint8),
    }
    assert len(BLOCKS) == 4
    for code in BLOCKS:
        exec(compile(code, "docs/your-model.md", "exec"), names)
        if "why.figure" in code:
            assert names["why"].names == ("query",)
            assert Path("why.png").stat().st_size
    assert names["net"].preprocessing.height_and_width == (256, 128)
    assert names["net"].layer == "layer4"
    assert names["why"].class_names == ("a photo of a wren", "a photo of a jay")
    assert names["batch"]["map"].shape[0] == len(names["batch"]["id"]) == 3
