"""The preprocessing in the attributes of a network, or assumed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

from captum_fam.found_preprocessing import (
    evaluation_crop_of,
    found_or_assumed,
    input_channels,
    input_dimensions,
    preprocessing_of,
)
from captum_fam.preprocessing import Preprocessing


def with_attribute(channels: int = 3, **attributes: Any) -> nn.Module:
    module = nn.Sequential(nn.Conv2d(channels, 4, 3))
    for name, value in attributes.items():
        setattr(module, name, value)
    return module


def test_nothing_is_found_and_that_is_said() -> None:
    assert preprocessing_of(with_attribute()) == (Preprocessing(), False)
    assert preprocessing_of(nn.Linear(3, 2)) == (Preprocessing(), False)


@pytest.mark.parametrize("channels", [1, 4, 13])
def test_other_numbers_of_channels_are_not_normalized(channels: int) -> None:
    expected = Preprocessing(mean=(0.0,) * channels, std=(1.0,) * channels)
    assert preprocessing_of(with_attribute(channels)) == (expected, False)
    # A configuration for three channels is not that of a network for four.
    config = {"input_size": (3, 96, 96), "mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)}
    assert preprocessing_of(with_attribute(channels, pretrained_cfg=config)) == (expected, False)


def test_a_network_of_timm_inside_another_module() -> None:
    config = {
        "input_size": (3, 96, 64),
        "mean": (0.1, 0.2, 0.3),
        "std": (0.4, 0.5, 0.6),
        "interpolation": "bicubic",
    }
    found = Preprocessing((96, 64), "squash", (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "bicubic")
    for name in ("pretrained_cfg", "default_cfg"):
        assert preprocessing_of(nn.Sequential(with_attribute(**{name: config}), nn.ReLU())) == (found, True)


def test_timm_says_it_by_itself() -> None:
    timm = pytest.importorskip("timm")
    found, is_found = preprocessing_of(timm.create_model("test_vit", num_classes=0))
    config = timm.data.resolve_model_data_config(timm.create_model("test_vit"))
    assert is_found
    assert (found.size, found.mean, found.std) == (config["input_size"][-1], config["mean"], config["std"])


def test_a_tower_of_open_clip_says_more_than_the_network_of_timm_in_it() -> None:
    inner = with_attribute(pretrained_cfg={"input_size": (3, 96, 96), "mean": (0.1,) * 3, "std": (0.2,) * 3})
    tower = nn.Sequential(inner)
    tower.preprocess_cfg = {"size": (48, 48), "mean": (0.3,) * 3, "std": (0.4,) * 3, "interpolation": "bicubic"}
    assert preprocessing_of(tower)[0] == Preprocessing(48, "squash", (0.3,) * 3, (0.4,) * 3, "bicubic")


def test_a_configuration_of_transformers_says_size_and_type() -> None:
    config = SimpleNamespace(model_type="siglip_vision_model", image_size=384, num_channels=3)
    expected = Preprocessing(384, "squash", (0.5,) * 3, (0.5,) * 3, "bicubic")
    assert preprocessing_of(with_attribute(config=config)) == (expected, True)
    whole = SimpleNamespace(model_type="clip", vision_config=SimpleNamespace(image_size=336, num_channels=3))
    found, _ = preprocessing_of(with_attribute(config=whole))
    assert (found.size, found.mean[0]) == (336, 0.48145466)


def test_a_network_with_a_size_of_its_own_is_assumed_to_take_it() -> None:
    assert preprocessing_of(with_attribute(image_size=64)) == (Preprocessing(64), False)


def test_the_first_convolution_says_channels_and_dimensions() -> None:
    assert input_channels(nn.Sequential(nn.Conv2d(13, 8, 3), nn.Conv2d(8, 8, 3))) == 13
    assert [input_dimensions(kind(1, 2, 3)) for kind in (nn.Conv1d, nn.Conv2d, nn.Conv3d)] == [1, 2, 3]
    assert (input_channels(nn.Linear(2, 2)), input_dimensions(nn.Linear(2, 2))) == (3, 2)


@pytest.mark.parametrize(
    ("config", "crop"),
    [
        ({"input_size": (3, 224, 224), "crop_pct": 0.95}, (235, 224)),  # 235.8
        ({"input_size": (3, 96, 96), "crop_pct": None}, (109, 96)),  # 109.7 for the default, 0.875
        ({"input_size": (3, 96, 64), "crop_pct": 0.9}, None),
    ],
)
def test_the_crop_of_timm_is_rounded_down(config: dict[str, Any], crop: tuple[int, int] | None) -> None:
    module = with_attribute(pretrained_cfg={"mean": (0.1,) * 3, "std": (0.2,) * 3, **config})
    assert evaluation_crop_of(nn.Sequential(module)) == crop


def test_the_crop_of_a_network_inside_a_tower_is_not_that_of_the_tower() -> None:
    config = {"input_size": (3, 96, 96), "mean": (0.1,) * 3, "std": (0.2,) * 3, "crop_pct": 0.9}
    tower = nn.Sequential(with_attribute(pretrained_cfg=config))
    tower.preprocess_cfg = {"size": 48, "mean": (0.3,) * 3, "std": (0.4,) * 3}
    assert evaluation_crop_of(tower) is None
    assert evaluation_crop_of(nn.Linear(3, 2)) is None


@pytest.mark.parametrize(
    ("channels", "words"), [(3, "normalized as for ImageNet"), (1, "not normalized: their values are in")]
)
def test_the_note_says_what_happens_to_the_values(channels: int, words: str) -> None:
    _, note = found_or_assumed(with_attribute(channels))
    assert note is not None
    assert f"224 x 224 pixels and {words}" in note
