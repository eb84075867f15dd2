"""Queries in every form that people have them give the scores of the same pictures, prepared by hand."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from captum_fam import SupportSet, explain
from captum_fam.images import UnreadableImageError
from tests.explanation.by_hand import as_input, cosines, embeddings, picture, small_model, write_pictures

Form = Callable[[list[Path]], Any]


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    return write_pictures(tmp_path / "queries", ["b.png", "a.png", "c.bmp"])


@pytest.fixture
def support(tmp_path: Path) -> tuple[SupportSet, Tensor]:
    """A support of images, and its embeddings in float64."""
    files = write_pictures(tmp_path / "support", [f"{i}.png" for i in range(4)], seed=50)
    inputs = torch.stack([as_input(file) for file in files]).float()
    return SupportSet(inputs, ["jay", "jay", "wren", "wren"]), embeddings(files)


def scores_by_hand(queries: Tensor, supports: Tensor) -> Tensor:
    cosine = cosines(queries, supports)
    return torch.stack([cosine[:, :2].mean(1), cosine[:, 2:].mean(1)], 1)


@pytest.mark.parametrize(
    "form",
    [
        list,
        tuple,
        lambda paths: [str(path) for path in paths],
        lambda paths: [Image.open(path) for path in paths],
        lambda paths: [np.asarray(Image.open(path)) for path in paths],
        lambda paths: [paths[0], Image.open(paths[1]), np.asarray(Image.open(paths[2]))],
        lambda paths: (path for path in paths),
        lambda paths: torch.stack([as_input(path) for path in paths]).float(),
        lambda paths: np.stack([as_input(path) for path in paths]).astype(np.float32),
        lambda paths: np.stack([as_input(path) for path in paths]),
    ],
    ids=["paths", "tuple", "texts", "PIL", "pixels", "mixed", "generator", "tensor", "float32", "float64"],
)
def test_several_queries(form: Form, paths: list[Path], support: tuple[SupportSet, Tensor]) -> None:
    why = explain(small_model(), form(paths), support[0])
    expected = scores_by_hand(embeddings(paths), support[1])
    torch.testing.assert_close(why.scores.double(), expected, rtol=0, atol=1e-5)
    assert why.maps.shape == (3, 1, 20, 12)


@pytest.mark.parametrize(
    "form",
    [
        lambda paths: paths[1],
        lambda paths: str(paths[1]),
        lambda paths: Image.open(paths[1]),
        lambda paths: np.asarray(Image.open(paths[1])),
        lambda paths: np.asarray(Image.open(paths[1]))[None],
        lambda paths: [paths[1]],
    ],
    ids=["path", "text", "PIL", "pixels", "batch of pixels", "list"],
)
def test_one_query(form: Form, paths: list[Path], support: tuple[SupportSet, Tensor]) -> None:
    why = explain(small_model(), form(paths), support[0])
    expected = scores_by_hand(embeddings([paths[1]]), support[1])
    torch.testing.assert_close(why.scores.double(), expected, rtol=0, atol=1e-5)


def test_a_folder_gives_its_pictures_in_the_order_of_their_names(
    paths: list[Path], support: tuple[SupportSet, Tensor]
) -> None:
    why = explain(small_model(), paths[0].parent, support[0])
    assert why.names == ("a", "b", "c")
    expected = scores_by_hand(embeddings([paths[1], paths[0], paths[2]]), support[1])
    torch.testing.assert_close(why.scores.double(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("channels", [None, 1, 4])
def test_gray_and_transparent_pixels_become_color(channels: int | None, support: tuple[SupportSet, Tensor]) -> None:
    gray = np.asarray(picture(7).convert("L"))
    pixels = gray if channels is None else np.repeat(gray[..., None], channels, 2)
    if channels == 4:
        pixels[..., 3] = 0
        pixels[:9, ..., 3] = 255
        opaque = pixels[..., 3:] == 255
        seen = Image.fromarray(np.where(opaque, pixels[..., :3], np.uint8(255)))
    else:
        seen = Image.fromarray(gray)
    why = explain(small_model(), pixels, support[0])
    expected = scores_by_hand(embeddings([seen]), support[1])
    torch.testing.assert_close(why.scores.double(), expected, rtol=0, atol=1e-5)


def test_the_order_and_the_names_of_files_stay(paths: list[Path], support: tuple[SupportSet, Tensor]) -> None:
    why = explain(small_model(), paths, support[0])
    assert why.names == ("b", "a", "c")
    assert explain(small_model(), [Image.open(path) for path in paths], support[0]).names[0] == "query-0"
    assert explain(small_model(), paths, support[0], names=["x", "y", "z"]).names == ("x", "y", "z")


def test_a_file_that_is_given_twice_is_two_queries(paths: list[Path], support: tuple[SupportSet, Tensor]) -> None:
    """A target belongs to each; files of one name get a number."""
    given = [paths[1], paths[0], paths[1]]
    why = explain(small_model(), given, support[0], target=["jay", "wren", "wren"])
    assert why.names == ("a", "b", "a-2")
    expected = scores_by_hand(embeddings(given), support[1])
    torch.testing.assert_close(why.target_scores.double(), expected[[0, 1, 2], [0, 1, 1]], rtol=0, atol=1e-5)


def test_photographs_are_shown_upright_at_their_own_resolution(
    paths: list[Path], support: tuple[SupportSet, Tensor], tmp_path: Path
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: the right side of the stored pixels is the bottom
    picture(3, 30, 50).save(tmp_path / "turned.png", exif=exif)
    why = explain(small_model(), [paths[0], tmp_path / "turned.png"], support[0])
    shown = [image for image in why.images if isinstance(image, Image.Image)]
    assert [image.size for image in shown] == [(50, 30), (30, 50)]
    assert np.array_equal(np.asarray(shown[0]), np.asarray(Image.open(paths[0])))
    assert np.array_equal(np.asarray(shown[1]), np.rot90(np.asarray(picture(3, 30, 50)), -1))
    assert why.overlay(1).size == (30, 50)
    upright = scores_by_hand(embeddings([shown[1]]), support[1])
    torch.testing.assert_close(why.scores[1:].double(), upright, rtol=0, atol=1e-5)


def test_an_image_of_the_user_does_not_change(support: tuple[SupportSet, Tensor]) -> None:
    image = picture(2, 1300, 1100)  # larger than what is shown
    before = np.asarray(image).copy()
    shown = explain(small_model(), image, support[0]).images[0]
    assert image.size == (1100, 1300)
    assert np.array_equal(np.asarray(image), before)
    assert isinstance(shown, Image.Image)
    assert shown.size == (866, 1024)


def test_batches_change_nothing(paths: list[Path], support: tuple[SupportSet, Tensor]) -> None:
    whole, parts = (explain(small_model(), paths, support[0], batch_size=size) for size in (32, 2))
    torch.testing.assert_close(parts.maps, whole.maps, rtol=1e-4, atol=1e-5)
    assert len(parts.images) == 3


@pytest.mark.parametrize(
    ("inputs", "error", "message"),
    [
        ([], TypeError, "inputs must be a tensor .*got an empty list"),
        ("missing.jpg", UnreadableImageError, "missing.jpg: no such file"),
        ("broken.jpg", UnreadableImageError, "broken.jpg: cannot be read"),
        (["good.png", "broken.jpg"], UnreadableImageError, "broken.jpg: cannot be read"),
        ("empty", ValueError, "inputs empty holds no images"),
        (["good.png", torch.rand(3, 20, 12)], TypeError, "inputs must be a tensor .*got a list of str and Tensor"),
        ({"a": "good.png"}, TypeError, "inputs must be .*got dict"),
        (7, TypeError, "inputs must be .*got int"),
        (None, TypeError, "inputs must be .*got NoneType"),
        (np.zeros((2, 3, 8), np.uint8), TypeError, r"inputs must be .*got an array of uint8 \(2, 3, 8\)"),
        (np.zeros((2, 3, 20, 12), np.uint8), TypeError, r"inputs must be .*uint8 \(2, 3, 20, 12\)"),
        (np.zeros((2, 3, 20, 12), np.int64), TypeError, "inputs must be .*int64"),
        (torch.rand(3, 20), ValueError, r"inputs must be a batch .*\(3, 20\)"),
    ],
)
def test_what_is_no_query_is_refused_by_name(
    inputs: Any,
    error: type[Exception],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    support: tuple[SupportSet, Tensor],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("broken.jpg").write_bytes(b"no image")
    shutil.copy(write_pictures(tmp_path / "queries", ["x.png"])[0], "good.png")
    with pytest.raises(error, match=message):
        explain(small_model(), inputs, support[0])
