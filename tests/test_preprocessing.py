"""From a photograph to the input of a model, and the part of the photograph that the model sees."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from captum_fam.preprocessing import LARGEST_SIDE, Preprocessing

RNG = np.random.default_rng(0)
PLAIN: dict[str, Any] = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
WIDE = Image.fromarray(RNG.integers(0, 256, (50, 120, 3), dtype=np.uint8))
TALL = Image.fromarray(RNG.integers(0, 256, (97, 31, 3), dtype=np.uint8))


@pytest.mark.parametrize(
    ("resize", "wide", "tall"),
    [
        ("squash", (48, 32), (48, 32)),
        ("pad", (48, 32), (48, 32)),
        ("crop", (48, 32), (48, 32)),
        ("keep", (13, 32), (48, 15)),  # 50 * 32 / 120 = 13.3, 31 * 48 / 97 = 15.3
    ],
)
def test_inputs_have_the_size_as_height_and_width(resize: Any, wide: tuple[int, int], tall: tuple[int, int]) -> None:
    preprocessing = Preprocessing((48, 32), resize)
    assert preprocessing(WIDE).shape == (3, *wide)
    assert preprocessing(TALL).shape == (3, *tall)
    assert preprocessing(WIDE).dtype == torch.float32


def test_padding_is_zero_and_the_photograph_lies_in_the_middle() -> None:
    preprocessing = Preprocessing(60, "pad", mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4), interpolation="bicubic")
    made = preprocessing(WIDE)  # 120 x 50 becomes 60 x 25, with (60 - 25) // 2 = 17 rows above
    assert not made[:, :17].any()
    assert not made[:, 42:].any()
    expected = np.asarray(WIDE.resize((60, 25), Image.Resampling.BICUBIC), dtype=np.float64) / 255
    expected = (expected - [0.4, 0.5, 0.6]) / [0.2, 0.3, 0.4]
    torch.testing.assert_close(
        made[:, 17:42].double(), torch.from_numpy(expected).permute(2, 0, 1), rtol=1e-5, atol=1e-5
    )


def test_a_crop_without_a_side_to_crop_from_covers_the_size() -> None:
    made = Preprocessing((20, 10), "crop", **PLAIN)(Image.new("RGB", (40, 80), (255, 0, 0)).resize((40, 80)))
    assert made.shape == (3, 20, 10)
    # A person of the ratio 2 to 1 fills a crop of the ratio 2 to 1: nothing is cut off.
    image = Image.new("RGB", (40, 80))
    image.paste((255, 255, 255), (0, 0, 40, 8))
    image.paste((255, 255, 255), (0, 72, 40, 80))
    made = Preprocessing((20, 10), "crop", **PLAIN)(image)
    assert made[0, 0].min() > 0.8
    assert made[0, -1].min() > 0.8
    assert not made[0, 5:15].any()


def test_a_crop_from_a_larger_side_is_that_of_torchvision() -> None:
    transforms = pytest.importorskip("torchvision.transforms")
    theirs = transforms.Compose([transforms.Resize(40), transforms.CenterCrop(32), transforms.ToTensor()])(WIDE)
    torch.testing.assert_close(Preprocessing(32, "crop", crop_from=40, **PLAIN)(WIDE), theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("image", [WIDE, TALL], ids=["wide", "tall"])
@pytest.mark.parametrize(
    "preprocessing",
    [
        Preprocessing(64, "squash", **PLAIN),
        Preprocessing((33, 60), "pad", **PLAIN),
        Preprocessing((40, 60), "crop", **PLAIN),
        Preprocessing(64, "crop", crop_from=80, **PLAIN),
        Preprocessing(64, "keep", **PLAIN),
    ],
    ids=lambda value: f"{value.resize}-{value.size}",
)
def test_a_map_of_the_input_lies_right_over_the_view(image: Image.Image, preprocessing: Preprocessing) -> None:
    # A smooth picture: its input and its view, both brought to one size, show the same at the same place.
    rows, columns = np.mgrid[: image.height, : image.width]
    ramp = np.stack([255 * rows / image.height, 255 * columns / image.width, 128 + 0 * rows], 2).round()
    smooth = Image.fromarray(ramp.astype(np.uint8))
    seen = _pixels(preprocessing.view(smooth))
    made = preprocessing(smooth)
    resized = torch.nn.functional.interpolate(seen[None], made.shape[1:], mode="bilinear", antialias=True)[0]
    inner = slice(3, -3)
    assert (resized - made)[:, inner, inner].abs().median() < 0.02
    assert seen.shape[1] >= min(image.height, 20)  # at the photograph's own resolution


def test_the_view_of_a_crop_is_cut_out_of_the_photograph() -> None:
    # 120 x 50, shorter side to 25: by half. The crop of 20 x 20 is 40 x 40 of the photograph, at x = 40, y = 4:
    # torchvision rounds the corner (25 - 20) / 2 = 2.5 to 2.
    view = Preprocessing(20, "crop", crop_from=25).view(WIDE)
    assert np.array_equal(np.asarray(view), np.asarray(WIDE)[4:44, 40:80])


def test_the_view_of_a_padded_photograph_holds_all_of_it() -> None:
    view = Preprocessing(60, "pad", **PLAIN).view(WIDE)
    assert view.width == 120
    assert view.height == 120
    assert np.array_equal(np.asarray(view)[34:84], np.asarray(WIDE))  # 17 rows of 60 are 34 of the photograph


def test_the_photograph_is_turned_upright() -> None:
    stored = Image.new("RGB", (20, 10), (0, 0, 255))
    stored.getexif()[0x0112] = 6  # to be turned by 90 degrees
    assert Preprocessing(40, "keep")(stored).shape == (3, 40, 20)
    assert Preprocessing(40, "keep").view(stored).size == (10, 20)


def test_a_model_of_one_channel_gets_the_gray_values() -> None:
    made = Preprocessing((6, 8), mean=(0.5,), std=(0.25,))(Image.new("RGB", (9, 9), (51, 51, 51)))
    torch.testing.assert_close(made, torch.full((1, 6, 8), (0.2 - 0.5) / 0.25))


def test_a_photograph_is_refused_where_the_model_takes_thirteen_channels() -> None:
    preprocessing = Preprocessing(mean=(0.0,) * 13, std=(1.0,) * 13)
    assert preprocessing.normalize(torch.ones(2, 13, 5, 4)).shape == (2, 13, 5, 4)
    with pytest.raises(ValueError, match="13 channels, and a photograph has three"):
        preprocessing(WIDE)


def test_it_is_written_to_json_and_sent_to_processes() -> None:
    preprocessing = Preprocessing((256, 128), "crop", interpolation="lanczos")
    assert json.loads(json.dumps(preprocessing.describe())) == {
        "size": [256, 128],
        "resize": "crop",
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "interpolation": "lanczos",
        "crop_from": None,
    }
    assert pickle.loads(pickle.dumps(preprocessing)) == preprocessing


def test_a_size_may_be_of_numpy() -> None:
    preprocessing = Preprocessing((np.int64(32), np.int32(20)), mean=np.full(3, 0.5))  # type: ignore[arg-type]
    assert (preprocessing.size, preprocessing.mean) == ((32, 20), (0.5, 0.5, 0.5))
    assert json.loads(json.dumps(preprocessing.describe()))["size"] == [32, 20]


@pytest.mark.parametrize("size", [np.float32(32), np.array([32, 32]), np.bool_(True), torch.tensor(32)])
def test_a_size_of_another_kind_is_refused(size: Any) -> None:
    with pytest.raises(ValueError, match="size must be a whole number of pixels"):
        Preprocessing(size)


@pytest.mark.parametrize("name", ["mean", "std"])
@pytest.mark.parametrize("values", [0.5, "0.5", ("a", "b", "c"), None])
def test_one_number_for_all_channels_is_refused(name: str, values: Any) -> None:
    with pytest.raises(ValueError, match=f"{name} must be one number per channel"):
        Preprocessing(**{name: values})


def test_a_size_may_come_as_a_list() -> None:
    assert Preprocessing([5, 7]).size == (5, 7)  # type: ignore[arg-type]
    assert Preprocessing((7, 7)).size == 7
    assert Preprocessing(5).height_and_width == (5, 5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Preprocessing(0), r"size must be a whole number of pixels from 1 to 4096, .* got 0"),
        (lambda: Preprocessing(LARGEST_SIDE + 1), "got 4097"),
        (lambda: Preprocessing((224, -1)), r"got \(224, -1\)"),
        (lambda: Preprocessing(True), "got True"),
        (lambda: Preprocessing(224.0), "got 224.0"),  # type: ignore[arg-type]
        (lambda: Preprocessing((1, 2, 3)), r"got \(1, 2, 3\)"),  # type: ignore[arg-type]
        (lambda: Preprocessing(resize="stretch"), "resize must be one of squash, pad, crop, keep, got 'stretch'"),  # type: ignore[arg-type]
        (lambda: Preprocessing(interpolation="cubic"), "interpolation must be one of .*, got 'cubic'"),
        (lambda: Preprocessing(mean=(0.0,)), "one number per channel"),
        (lambda: Preprocessing(std=(1.0, 0.0, 1.0)), "std finite and above zero"),
        (lambda: Preprocessing(mean=(float("nan"),) * 3), "mean must be finite"),
        (lambda: Preprocessing(mean=(123.7, 116.3, 103.5), std=(58.4, 57.1, 57.4)), r"pixels in \[0, 1\], .* by 255"),
        (lambda: Preprocessing(crop_from=256), "crop_from=256 is for resize='crop'"),
        (lambda: Preprocessing(resize="crop", crop_from=200), "crop must fit in the resized image"),
    ],
)
def test_what_cannot_be_is_refused(make: Callable[[], Preprocessing], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def _pixels(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
