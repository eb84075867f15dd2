from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from captum_fam.cli.main import main, make_parser
from captum_fam.experiments.training import MoCoRecipe, NPIDRecipe
from captum_fam.models import create_model

pytest.importorskip("safetensors", reason="checkpoints are safetensors")

_SHORT = "--epochs 2 --batch-size 8 --k 3 --embedding-size 6 --norm-groups 2 --device cpu --quiet".split()
_NETWORK = """
from torch import nn

def network():
    return nn.Sequential(nn.Conv2d(3, 6, 3, 2), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
"""


def _run(*words: Any) -> int:
    return main(["--traceback", "train", "contrastive", *map(str, words)])


@pytest.fixture
def network(tmp_path: Path) -> str:
    """A factory in a file of the user."""
    file = tmp_path / "mine.py"
    file.write_text(_NETWORK)
    return f"{file}:network"


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """Three class folders with eight photographs each, of different sizes."""
    for label in range(3):
        (tmp_path / "photos" / f"class{label}").mkdir(parents=True)
        for i in range(8):
            pixels = (torch.rand(20 + i, 24, 3) * 60 + 60 * label).byte().numpy()
            Image.fromarray(pixels).save(tmp_path / "photos" / f"class{label}" / f"{i}.png")
    return tmp_path / "photos"


@pytest.mark.filterwarnings("ignore:.*preprocessing.*:UserWarning")
@pytest.mark.parametrize("way", ["npid", "moco"])
@pytest.mark.parametrize("stored", [[], ["--stored-size", 20]], ids=["files", "stored"])
def test_a_network_of_ones_own_learns_from_class_folders(
    way: str, stored: list[Any], network: str, folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = (way, "--model", network, "--data", folders, "--out", out, "--size", 16, "--hold-out", 4, *stored, *_SHORT)
    assert _run(*words) == 0
    printed = capsys.readouterr().out
    pattern = (
        r"best epoch: [01] of 0\.\.1, loss \d+\.\d+\n3-NN accuracy, network: \d+\.\d\d%\n.*added head: \d+\.\d\d%\n"
    )
    assert re.fullmatch(pattern, printed)
    with (out / "log.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    columns = ["epoch", "learning_rate", "loss", "instance_accuracy", "val_knn", "val_knn_head", "seconds"]
    assert list(rows[0]) == columns
    assert len(rows) == 2
    create_model(network, out / "best.safetensors", size=16)
    assert len(list(out.glob("contrastive-photos-*.pt"))) == len(stored)
    # The same command again has nothing left to do, and says the same.
    assert _run(*words) == 0
    assert capsys.readouterr().out == printed


def test_scenes_and_a_network_of_the_paper(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("moco", "--model", "npid_resnet18", "--data", "scenes:12", "--out", tmp_path / "out", "--size", 32)
    assert _run(*words, *_SHORT, "--epochs", 1, "--hold-out", 0) == 0
    assert capsys.readouterr().out.startswith("best epoch: 0 of 0..0")
    assert not (tmp_path / "out" / "best-head.safetensors").exists()
    create_model("npid_resnet18", tmp_path / "out" / "best.safetensors")


def test_validation_images_of_imagenet(network: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "val").mkdir()
    lines = ["ImageId,PredictionString"]
    for i in range(12):
        Image.new("RGB", (20, 18), (20 * i, 90, 9)).save(tmp_path / "val" / f"ILSVRC2012_val_{i:08}.JPEG")
        lines.append(f"ILSVRC2012_val_{i:08},n0000000{i % 2} 1 2 10 12")
    (tmp_path / "boxes.csv").write_text("\n".join(lines) + "\n")
    words = ("npid", "--model", network, "--data", tmp_path / "val", "--boxes", tmp_path / "boxes.csv", "--size", 16)
    assert _run(*words, "--out", tmp_path / "out", "--hold-out", 3, *_SHORT) == 0
    assert "3-NN accuracy, network" in capsys.readouterr().out


def test_the_defaults_are_those_of_the_recipes() -> None:
    for way, recipe in (("npid", NPIDRecipe()), ("moco", MoCoRecipe())):
        options = make_parser("train").parse_args(["contrastive", way, "--model", "x", "--data", "y"])
        assert {name: getattr(options, name) for name in vars(recipe)} == vars(recipe)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["npid", "--temperature", "0"], "argument --temperature: expected a number, above 0"),
        (["npid", "--key-momentum", "0.9"], "unrecognized arguments: --key-momentum"),
        (["moco", "--batch-size", "20"], "batch_size=20 must be a multiple of norm_groups=8"),
        (["moco", "--queue", "8"], "queue=8 must hold a batch, batch_size=256"),
        (["npid", "--data", "scenes:100"], "batch_size=256 is more than the 100 training images"),
        (["npid", "--model", "nothing"], "'nothing'"),
        (["npid", "--data", "nowhere"], "nowhere"),
        (["npid", "--precision", "float16", "--device", "cpu"], 'precision "float16" needs a GPU'),
        (["npid", "--split", "right"], "right"),
        (["npid", "--hold-out", "1"], "expected 0 or a whole number of at least 2"),
    ],
)
def test_a_refused_option_is_one_line_and_leaves_no_folder(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    way, *changes = words
    common = ["--model", "conv4net", "--data", "scenes:999", "--size", "16", "--out", "out", "--quiet"]
    try:
        code = main(["train", "contrastive", way, *common, *changes])
    except SystemExit as ended:
        code = int(str(ended.code))
    assert code == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert message in error[-1]
    assert error[-1].startswith("captum-fam")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("ignore:.*preprocessing.*:UserWarning")
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--k", 19], "k=19 is more than the 18 training images that can vote; lower it"),
        (["--batch-size", 20], "batch_size=20 is more than the 18 training images; lower it"),
        (["--hold-out", 9], "no class has 9 images"),
        (["--split", "base"], "split='base' is for CUB-200-2011 and scenes"),
    ],
)
def test_an_option_that_does_not_fit_the_images_is_one_line(
    words: list[Any], message: str, network: str, folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["npid", "--model", network, "--data", folders, "--size", 16, "--out", tmp_path / "out", "--hold-out", 4]
    assert main(["train", "contrastive", *map(str, [*common, *_SHORT, *words])]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("captum-fam: error: ")
    assert message in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("way", ["npid", "moco"])
def test_without_safetensors_the_extra_is_named(
    way: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "safetensors", None)
    monkeypatch.setitem(__import__("sys").modules, "safetensors.torch", None)
    words = ["train", "contrastive", way, "--model", "conv4net", "--data", "scenes:999", "--out", str(tmp_path / "out")]
    assert main(words) != 0
    assert 'pip install "captum-fam[train]"' in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
