"""A file of the user's own, with public names only, whose registrations work in the commands."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

PLUGIN = '''
from dataclasses import dataclass

from captum.attr import LayerGradientXActivation
from torch import nn

from captum_fam import register_method, register_model, register_similarity
from captum_fam.cli.options import option
from captum_fam.experiments import Retrieval
from captum_fam.experiments.protocols import register_protocol
from captum_fam.similarity import Dot

register_method("gradient-x-activation", LayerGradientXActivation)


@register_similarity("overlap")
class Overlap(Dot):
    """The dot product by another name."""


@register_model("my_network", size=32, pretrained=True)
def my_network():
    return nn.Sequential(nn.Conv2d(3, 6, 5, stride=4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())


@register_protocol("twins")
@dataclass(eq=False, kw_only=True)
class Twins(Retrieval):
    """Retrieval by another name, with an option of its own."""

    summary = "every image and its twin"
    split = "novel"
    closeness: float = option("of twins", 0.5)

    def settings(self):
        return {**super().settings(), "closeness": self.closeness}
'''


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(PLUGIN)
    random = np.random.default_rng(0)
    for name in ("query", "a", "b"):
        Image.fromarray(random.integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(tmp_path / f"{name}.png")
    return tmp_path


def run(folder: Path, words: str) -> str:
    """A process of its own, because registrations stay for the life of a process."""
    command = [sys.executable, "-m", "captum_fam", "--plugin", "mine.py", *words.split()]
    finished = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def test_explain_takes_a_method_a_similarity_and_a_model(folder: Path) -> None:
    words = "explain query.png --support a.png b.png --methods gradient-x-activation,fam --model my_network"
    assert "1 explained, 0 unreadable" in run(folder, f"{words} --similarity overlap --device cpu --out out")
    manifest = json.loads((folder / "out" / "manifest.json").read_text())
    assert list(manifest["options"]) == ["gradient-x-activation", "fam"]
    assert (manifest["model"], manifest["weights"]) == ("my_network", {"name": "DEFAULT"})
    assert manifest["preprocessing"]["size"] == 32
    assert manifest["similarity"].startswith("Overlap")


def test_evaluate_takes_a_method_a_similarity_and_a_protocol(folder: Path) -> None:
    words = "evaluate twins --model demo --size 48 --data scenes:24 --methods gradient-x-activation,uniform --quiet"
    words += " --similarity overlap --closeness 0.75 --explain all --device cpu --examples 0 --out out"
    printed = run(folder, words)
    assert "gradient-x-activation" in printed
    summary = json.loads((folder / "out" / "summary.json").read_text())
    assert (summary["protocol"], summary["closeness"], summary["similarity"]) == ("twins", 0.75, "overlap")
