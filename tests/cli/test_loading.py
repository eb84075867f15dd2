"""The options that name the model of a command."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from captum_fam.cli.loading import ModelOptions, check_weights, image_size, output_field
from captum_fam.cli.options import add_fields, read_fields
from captum_fam.models import create_model


def parsed(*words: str) -> ModelOptions:
    parser = argparse.ArgumentParser()
    add_fields(parser, ModelOptions)
    return read_fields(ModelOptions, parser.parse_args(words))


@pytest.mark.parametrize(
    ("text", "size"), [("224", 224), ("256x128", (256, 128)), ("256X128", (256, 128)), ("64x64", 64), ("4096", 4096)]
)
def test_sizes_are_height_x_width(text: str, size: int | tuple[int, int]) -> None:
    assert image_size(text) == size


@pytest.mark.parametrize("text", ["0", "-3", "4097", "99999", "9" * 5000, "224.5", "x", "3x", "1x2x3", "a", "", "²"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="pixels"):
        image_size(text)


@pytest.mark.parametrize(("text", "output"), [("1", 1), ("-1", -1), ("pooler_output", "pooler_output"), ("-", "-")])
def test_an_output_is_a_field_or_an_index(text: str, output: str | int) -> None:
    assert output_field(text) == output


def test_all_options_reach_the_model() -> None:
    options = parsed(
        *("--model", "demo", "--layer", "features.2", "--similarity", "euclidean"),
        *("--size", "96x64", "--resize", "pad"),
    )
    net = options.load()
    assert (net.name, net.layer, net.similarity, net.size, net.resize) == (
        "demo",
        "features.2",
        "euclidean",
        (96, 64),
        "pad",
    )


FACTORY = """
from torch import nn

class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(3, 8, 5, stride=4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.project = nn.Linear(8, 4)

    def forward(self, images):
        features = self.trunk(images)
        return {"features": features, "projection": self.project(features)}
"""


@pytest.mark.parametrize(("output", "length"), [("projection", 4), ("0", 8)])
def test_the_output_of_a_model_of_ones_own_is_named(
    output: str, length: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "two_outputs.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    net = parsed("--model", "two_outputs.py:Two", "--size", "32", "--output", output).load()
    assert net.model(torch.rand(2, 3, 32, 32)).shape == (2, length)
    with pytest.raises(ValueError, match=r"with the fields features \(1, 8\), projection \(1, 4\).*--output FIELD"):
        parsed("--model", "two_outputs.py:Two", "--size", "32").load()


def test_random_weights_are_given_when_asked_for_and_that_is_said() -> None:
    with pytest.warns(UserWarning, match="--model conv4net: random weights, whose maps explain nothing"):
        net = parsed("--model", "conv4net", "--weights", "none").load()
    assert net.name == "conv4net"
    with pytest.raises(ValueError, match=r"--model conv4net: give its weights as --weights FILE; .*--weights none"):
        parsed("--model", "conv4net").load()


@pytest.mark.parametrize("missing", ["refuse", "warn"])
def test_trained_weights_need_no_word(missing: Any, recwarn: pytest.WarningsRecorder) -> None:
    check_weights("resnet50", None, "--weights FILE", missing)
    check_weights("conv4net", "weights.pth", "--weights FILE", missing)
    check_weights("demo", "none", "--weights FILE", missing)  # which brings its weights
    check_weights("conv4net", "none", "--weights FILE", "ignore")
    assert not recwarn.list


def test_a_file_of_weights_is_loaded(tmp_path: Path) -> None:
    trained = create_model("conv4net").model
    torch.save(trained.state_dict(), tmp_path / "weights.pth")
    net = parsed("--model", "conv4net", "--weights", str(tmp_path / "weights.pth")).load()
    torch.testing.assert_close(net.model.state_dict(), trained.state_dict())


def test_the_similarity_is_refused_before_the_model_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: nn.Module, images: Tensor) -> Tensor:
        raise AssertionError("the model ran")

    monkeypatch.setattr("captum_fam.models.Conv4Net.forward", fail)
    with pytest.raises(ValueError, match="kosinus"):
        parsed("--model", "demo", "--similarity", "kosinus").load()
