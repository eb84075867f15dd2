"""Datasets by the name of their folder."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from captum_fam.experiments import evaluate
from captum_fam.experiments.data.load import load_dataset
from captum_fam.experiments.measures import Panel
from captum_fam.experiments.protocols.contrastive import Contrastive
from captum_fam.experiments.protocols.retrieval import Retrieval
from captum_fam.experiments.table_methods import get_methods
from captum_fam.experiments.two_part_model import TwoPartModel
from captum_fam.pooling import GAP

COLOURS = {"blue": (0, 0, 255), "green": (0, 255, 0), "red": (255, 0, 0)}


@pytest.fixture
def model() -> TwoPartModel:
    """Its embedding is the mean color."""
    return TwoPartModel(torch.nn.Identity(), GAP(), size=8, mean=(0.0, 0.0, 0.0), std=(0.5, 1.0, 1.0)).eval()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, color in COLOURS.items():
        (tmp_path / name).mkdir()
        for number in range(4):
            Image.new("RGB", (20 + number, 10), color).save(tmp_path / name / f"{number}.png")
    return tmp_path


def test_class_folders_are_numbered_by_name_and_framed_as_the_model_takes_them(
    folder: Path, model: TwoPartModel
) -> None:
    data = load_dataset(folder, "test", model)
    assert (data.class_names, len(data)) == (("blue", "green", "red"), 12)
    image, label = data[11]
    assert label == 2
    assert image.shape == (3, 8, 8)
    assert image[:, 5, 2].tolist() == [2.0, 0.0, 0.0]
    assert data.records[11].path == folder / "red/3.png"


def test_a_photograph_of_class_folders_is_upright_and_of_its_own_size(folder: Path, model: TwoPartModel) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6  # stored a quarter turn to the left
    Image.new("RGB", (20, 10), (255, 0, 0)).save(folder / "red/0.png", exif=turned)
    data = load_dataset(folder, "test", model)
    assert data.photograph(8).size == (10, 20)
    assert data.photograph(3).size == (23, 10)
    assert data.photograph(3).getpixel((22, 9)) == COLOURS["blue"]


def test_names_that_are_no_utf8_are_evaluated_and_listed(folder: Path, model: TwoPartModel, tmp_path: Path) -> None:
    try:
        (folder / "red").rename(folder / os.fsdecode(b"r\xffd"))
        (folder / "blue/0.png").rename(folder / "blue" / os.fsdecode(b"\xfe.png"))
    except OSError:
        pytest.skip("the file system takes names in UTF-8 only")
    # A blue one of the color of the red ones, whose nearest neighbor is red.
    Image.new("RGB", (10, 10), COLOURS["red"]).save(folder / "blue" / os.fsdecode(b"\xfc.png"))
    panel = Panel(get_methods("uniform"), ("swap",))
    protocol = Retrieval(model, load_dataset(folder, "test", model), panel, ks=(1,))
    evaluate(protocol, tmp_path / "out", examples=1, wrong=1)
    with (tmp_path / "out" / "wrong.csv").open(encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    assert (row["file"], row["label"], row["predicted"]) == (r"\udcfc.png", "blue", r"r\udcffd")


def test_a_bank_of_class_folders_classifies_and_leaves_a_query_out_of_its_own_neighbors(
    folder: Path, model: TwoPartModel, tmp_path_factory: pytest.TempPathFactory
) -> None:
    (folder / "red/0.png").write_bytes(b"no image")
    data = load_dataset(folder, "test", model)
    panel = Panel(get_methods("fam"), ("swap",))
    protocol = Contrastive(model, data, panel, k=3, batch_size=4)
    with pytest.warns(UserWarning, match="left out of the bank, because they could not be used: 1"):
        evaluation = evaluate(protocol, tmp_path_factory.mktemp("out"))
    assert evaluation is not None
    assert evaluation.model["accuracy"].n == 11
    assert evaluation.model["accuracy"].value == 1
    assert [str(folder / "red/0.png") in reason for reason in evaluation.skipped.values()] == [True]


def test_localisation_without_boxes_is_refused(folder: Path, model: TwoPartModel) -> None:
    data = load_dataset(folder, "test", model)
    with pytest.raises(ValueError, match="localization needs boxes, which the dataset ClassFolders does not have"):
        Contrastive(model, data, Panel(get_methods("fam"), ("localization",)))


def test_a_folder_of_nothing_says_what_was_expected(tmp_path: Path, model: TwoPartModel) -> None:
    with pytest.raises(FileNotFoundError, match="nor folders of images by class"):
        load_dataset(tmp_path, "test", model)


def test_only_folders_with_images_are_classes_and_the_others_are_named(folder: Path, model: TwoPartModel) -> None:
    before = [record.path for record in load_dataset(folder, "test", model).records]
    for name in (".thumbnails", ".captum-fam-ab12", "out"):
        (folder / name).mkdir()
        Image.new("RGB", (8, 8)).save(folder / name / "0.png")
    (folder / "out/manifest.json").write_text('{"versions": {"captum-fam": "0"}}')
    (folder / "yellow").mkdir()
    (folder / "yellow/notes.txt").touch()
    (folder / "labels.csv").touch()
    with pytest.warns(UserWarning, match="left out as no classes: .*results of captum-fam: 1 .out.*: 1 .yellow."):
        data = load_dataset(folder, "test", model)
    assert [record.path for record in data.records] == before
    assert data.class_names == ("blue", "green", "red")
    assert len(data.skipped) == 5


def test_files_of_any_suffix_and_of_16_bits_are_images_of_a_class(folder: Path, model: TwoPartModel) -> None:
    (folder / "red/0.png").rename(folder / "red/0.jfif")
    (folder / "red/old/deep").mkdir(parents=True)
    Image.fromarray(np.full((10, 20), 257 * 51, dtype=np.uint16)).save(folder / "red/old/deep/x.PNG")
    data = load_dataset(folder, "test", model)
    assert [record.path.name for record in list(data.records)[8:]] == ["0.jfif", "1.png", "2.png", "3.png", "x.PNG"]
    assert data.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 5
    image, label = data[12]
    assert label == 2
    torch.testing.assert_close(image[1], torch.full((8, 8), 0.2))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("os:getcwd", "data os:getcwd: must take the model and the split .*too many positional arguments"),
        ("os:nothing", "data os:nothing: os has no function 'nothing'"),
        ("os:sep", "data os:sep: os has no function 'sep'"),
        ("no_such_module:make", "data no_such_module:make: no such folder, and no function to import"),
        ("factory.py:make", "data factory.py:make: gave NoneType, expected a data set"),
        ("scenes:many", "data scenes:many: .*number of scenes, at least 1, got 'many'"),
        ("scenes:0", "got '0'"),
        ("scenes:-3", "got '-3'"),
    ],
)
def test_a_source_that_gives_no_data_set_is_one_clear_error(
    source: str, message: str, model: TwoPartModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "factory.py").write_text("def make(model, split):\n    return None\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        load_dataset(source, "novel", model)


def test_a_function_of_a_file_makes_the_data_set(
    model: TwoPartModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_data_of_two.py").write_text("def make(model, split):\n    return [(split, 0), (split, 1)]\n")
    monkeypatch.chdir(tmp_path)
    assert list(load_dataset("my_data_of_two.py:make", "novel", model)) == [("novel", 0), ("novel", 1)]
