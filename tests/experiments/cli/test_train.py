from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

from captum_fam.cli.main import main, make_parser
from captum_fam.experiments import load_head
from captum_fam.experiments.cli.loading import load_network
from captum_fam.models import create_model, read_state_dict, register_model

pytest.importorskip("safetensors", reason="checkpoints are safetensors")


def _run(*words: Any) -> int:
    return main(["--traceback", "train", *map(str, words)])


@pytest.fixture
def birds(tmp_path: Path) -> Path:
    """Sixteen classes of twenty photographs in the layout of CUB-200-2011."""
    root = tmp_path / "birds"
    tables: dict[str, list[str]] = {
        name: [] for name in ("classes", "images", "image_class_labels", "bounding_boxes", "train_test_split")
    }
    for label in range(16):
        tables["classes"].append(f"{label + 1} {label:03}.Bird")
        (root / "images" / f"{label:03}.Bird").mkdir(parents=True)
        for i in range(20):
            number = 20 * label + i + 1
            path = f"{label:03}.Bird/{i}.png"
            pixels = (torch.rand(9 + i % 3, 12, 3) * 40 + 13 * label).byte().numpy()
            Image.fromarray(pixels).save(root / "images" / path)
            rows = (path, label + 1, "1.0 1.0 5.0 5.0", i % 2)
            for name, row in zip(list(tables)[1:], rows, strict=True):
                tables[name].append(f"{number} {row}")
    for name, lines in tables.items():
        (root / f"{name}.txt").write_text("\n".join(lines) + "\n")
    return root


_FEW_SHOT = ("--way", 3, "--query", 2, "--epochs", 2, "--episodes", 4, "--val-episodes", 5, "--test-episodes", 20)


def test_few_shot_training_on_photographs_prints_the_accuracy_of_both_other_splits(
    birds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = (
        "few-shot",
        "--model",
        "conv4net",
        "--data",
        birds,
        "--out",
        out,
        "--size",
        16,
        "--device",
        "cpu",
        "--quiet",
    )
    assert _run(*words, *_FEW_SHOT) == 0
    printed = capsys.readouterr().out
    assert re.search(r"val 3-way 1-shot: \d+\.\d\d% ± \d\.\d\d%\nnovel 3-way 1-shot: \d+\.\d\d% ± ", printed)
    with (out / "log.csv").open(encoding="utf-8") as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["0", "1"]
    create_model("conv4net", out / "best.safetensors")
    # The same command again has nothing left to do, and says the same.
    assert _run(*words, *_FEW_SHOT) == 0
    assert capsys.readouterr().out == printed


def test_few_shot_training_starts_from_given_weights(birds: Path, tmp_path: Path) -> None:
    weights = tmp_path / "weights.pth"
    torch.save(create_model("conv4net").model.state_dict(), weights)
    words = ("few-shot", "--model", "conv4net", "--data", birds, "--size", 16, "--quiet", *_FEW_SHOT)
    _run(*words, "--out", tmp_path / "out", "--weights", weights, "--learning-rates", ",".join(["1e-12"] * 4))
    trained, given = read_state_dict(tmp_path / "out" / "best.safetensors"), read_state_dict(weights)
    torch.testing.assert_close(trained["features.0.0.weight"], given["features.0.0.weight"])


def test_planted_scenes_need_no_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = (
        "few-shot",
        "--model",
        "conv4net",
        "--data",
        "scenes:1536",
        "--out",
        tmp_path,
        "--size",
        16,
        "--device",
        "cpu",
    )
    # Sixteen scenes per class leave one support and fifteen queries.
    assert _run(*words, "--quiet", *_FEW_SHOT) == 0
    assert "novel 3-way 1-shot" in capsys.readouterr().out


@pytest.mark.parametrize("frozen", [True, False])
def test_metric_learning_of_a_headless_network_writes_a_head_and_prints_the_recall(
    frozen: bool, birds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("pytorch_metric_learning")
    words: list[Any] = [
        "metric",
        "--model",
        "conv4net",
        "--data",
        birds,
        "--out",
        tmp_path / "out",
        "--size",
        32,
        "--quiet",
    ]
    words += ["--loss", "margin", "--pooling", "gmp", "--embedding-size", 8, "--quiet"]
    words += ["--steps", 4, "--period", 2, "--way", 3, "--hold-out", 4, *(["--freeze-backbone"] if frozen else [])]
    assert _run(*words) == 0
    printed = capsys.readouterr().out
    assert re.search(r"best step: [24]\ntest recall@1 \d+\.\d\d%  recall@2 ", printed)
    head = read_state_dict(tmp_path / "out" / "best-head.safetensors")
    assert head["weight"].shape == (8, 64)
    assert (tmp_path / "out" / "best.safetensors").is_file() != frozen
    assert _run(*words) == 0
    assert capsys.readouterr().out == printed


def test_bn_inception_starts_from_its_imagenet_classifier(tmp_path: Path) -> None:
    net = create_model("multi_similarity_bn_inception")
    # Cadene's names: those of the blocks with an underscore, without the container.
    state = {"last_linear.weight": torch.zeros(1000, 1024), "last_linear.bias": torch.zeros(1000)}
    for key, value in net.model.features.state_dict().items():
        *blocks, kind, leaf = key.split(".")
        state["_".join(blocks) + ("_bn" if kind == "bn" else "") + f".{leaf}"] = torch.full_like(value, 0.5)
    torch.save(state, tmp_path / "inception.pth")
    made = load_network("multi_similarity_bn_inception", str(tmp_path / "inception.pth"), size=64, seed=1)
    assert made.size == 64
    assert all(p.detach().eq(0.5).all() for p in made.model.features.parameters())
    assert made.model.head.weight.std() > 0.01


def test_a_network_whose_trained_weights_are_a_file_starts_from_random_ones_unless_it_is_given(tmp_path: Path) -> None:
    def never() -> Path:
        raise AssertionError("a training that is given no file asks for none")

    def plain() -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())

    name = f"filed{tmp_path.name}"
    register_model(name, plain, default_weights=never, size=12)
    first, again, other = (
        load_network(name, weights, size=None, seed=seed).model.state_dict()["0.weight"]
        for weights, seed in ((None, 1), ("none", 1), (None, 2))
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    torch.save({"0.weight": torch.ones(4, 3, 3, 3), "0.bias": torch.zeros(4)}, tmp_path / "given.pth")
    given = load_network(name, str(tmp_path / "given.pth"), size=None, seed=1)
    assert given.model.state_dict()["0.weight"].eq(1).all()


def test_the_defaults_are_those_of_the_published_recipes() -> None:
    parser = make_parser("train")
    few_shot = parser.parse_args(["few-shot", "--model", "conv4net", "--data", "x"])
    assert (few_shot.epochs, few_shot.episodes, few_shot.query, few_shot.learning_rates[0]) == (90, 1200, 6, 0.1)
    assert few_shot.out == Path("captum-fam-train-few-shot")
    metric = parser.parse_args(["metric", "--model", "margin_bn_inception", "--data", "x"])
    assert (metric.steps, metric.images, metric.embedding_size) == (3000, 5, 512)


def test_a_recipe_that_cannot_be_is_refused_before_anything_is_read(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "few-shot", "--model", "conv4net", "--data", "nowhere", "--milestones", "3,4"]) == 2
    assert "learning_rates must be one more than the 2 milestones" in capsys.readouterr().err


def test_a_linear_head_is_trained_on_frozen_features(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "head.pt"
    words = ("head", "--model", "demo", "--size", 48, "--data", "scenes:48", "--device", "cpu", "--quiet")
    assert _run(*words, "--width", 5, "--steps", 3, "--out", path) == 0
    assert capsys.readouterr().out == f"64 -> 5, on 48 images: {path}\n"
    assert load_head(path).weight.shape == (5, 64)
