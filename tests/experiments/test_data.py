"""Datasets by the name of their folder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from captum_fam.experiments import evaluate
from captum_fam.experiments.data.load import load_dataset
from captum_fam.experiments.measures import Panel
from captum_fam.experiments.protocols.contrastive import Contrastive
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
