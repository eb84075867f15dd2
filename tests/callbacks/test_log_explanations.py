"""The plain function for any training loop, and what it writes where."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from captum_fam.callbacks import log_similarity_explanations
from tests.callbacks import two_ranks
from tests.callbacks.trained_nets import SmallNet, labeled, small_panel


class ImageLogger:
    """A logger of images and numbers, as those of Lightning are."""

    def __init__(self) -> None:
        self.images: list[tuple[str, int]] = []
        self.numbers: list[tuple[dict[str, float], int]] = []

    def log_image(self, key: str, images: list[Any], step: int | None = None) -> None:
        assert all(isinstance(image, Image.Image) for image in images)
        self.images.append((key, step or 0))

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.numbers.append((metrics, step or 0))


def read_table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_folder_gets_figures_and_a_line_every_n_steps(tmp_path: Path) -> None:
    panel, model = small_panel(), SmallNet()
    readings = [log_similarity_explanations(model, panel, tmp_path, step, every=2) for step in range(4)]
    assert [reading is None for reading in readings] == [False, True, False, True]
    pictures = sorted(path.name for path in tmp_path.glob("*.png"))
    assert pictures == ["0000-query-0.png", "0000-query-4.png", "0002-query-0.png", "0002-query-4.png"]
    assert Image.open(tmp_path / "0002-query-4.png").width > 200
    rows = read_table(tmp_path / "panel.csv")
    assert [row["step"] for row in rows] == ["0", "2"]
    assert readings[2] is not None
    assert {name: float(rows[1][name]) for name in readings[2].numbers} == readings[2].numbers


def test_a_step_that_is_looked_at_again_has_one_line(tmp_path: Path) -> None:
    panel, model = small_panel(), SmallNet()
    for step in (0, 1, 1):
        log_similarity_explanations(model, panel, tmp_path, step)
    assert [row["step"] for row in read_table(tmp_path / "panel.csv")] == ["0", "1"]


def test_panels_with_names_write_side_by_side(tmp_path: Path) -> None:
    logger, model = ImageLogger(), SmallNet()
    for name in ("left", "right"):
        log_similarity_explanations(model, small_panel(name=name, shown=1), [tmp_path, logger], 3)
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.png")) == [
        "left/0003-query-0.png",
        "right/0003-query-0.png",
    ]
    assert logger.images == [("left/maps/query-0", 3), ("right/maps/query-0", 3)]
    assert list(logger.numbers[0][0]) == ["left/knn_accuracy", "left/panel_score", "left/panel_coverage"]


def test_tensorboard_gets_images_and_curves(tmp_path: Path) -> None:
    tensorboard = pytest.importorskip("torch.utils.tensorboard", reason="needs tensorboard")
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason="needs tensorboard")
    with tensorboard.SummaryWriter(tmp_path) as writer:
        reading = log_similarity_explanations(SmallNet(), small_panel(), writer, 7)
    assert reading is not None
    found = events.EventAccumulator(str(tmp_path))
    found.Reload()
    assert found.Tags()["images"] == ["maps/query-0", "maps/query-4"]
    (image,) = found.Images("maps/query-0")
    assert (image.step, image.width > 200) == (7, True)
    (accuracy,) = found.Scalars("knn_accuracy")
    assert (accuracy.step, accuracy.value) == (7, pytest.approx(reading.accuracy))
    assert set(found.Tags()["scalars"]) == set(reading.numbers)


def test_a_look_at_the_pixels_of_tensorboard(tmp_path: Path) -> None:
    class Writer:
        def add_image(self, tag: str, image: Any, step: int, dataformats: str) -> None:
            assert dataformats == "HWC"
            assert image.dtype == np.uint8
            assert image.shape[2] == 3
            assert image.std() > 5  # something is drawn

        def add_scalar(self, *_: Any) -> None: ...

    assert log_similarity_explanations(SmallNet(), small_panel(), Writer(), 0) is not None


@pytest.mark.parametrize("writer", [None, print, [3]])
def test_another_writer_is_refused_before_the_look(writer: Any) -> None:
    with pytest.raises(TypeError, match="writer must be"):
        log_similarity_explanations(None, small_panel(), writer, 0)


@pytest.mark.parametrize(("step", "every"), [("x", 1), (0, "2"), (1.5, 1)])
def test_steps_are_whole_numbers(step: Any, every: Any, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="step and every must be whole numbers, got step="):
        log_similarity_explanations(None, small_panel(), tmp_path, step, every=every)


def test_what_is_no_panel_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="panel must be an ExplanationPanel, got tuple"):
        log_similarity_explanations(SmallNet(), labeled(5, 3), tmp_path, 0)  # type: ignore[arg-type]


@pytest.mark.parametrize(("step", "every"), [(-1, 1), (0, 0)])
def test_steps_are_checked(step: int, every: int, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="step must be"):
        log_similarity_explanations(SmallNet(), small_panel(), tmp_path, step, every=every)


def test_of_two_processes_the_first_looks_and_none_waits_forever(tmp_path: Path) -> None:
    if not torch.distributed.is_available():
        pytest.skip("torch was built without distributed")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, two_ranks.__file__, str(rank), str(tmp_path)],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=240)
        assert process.returncode == 0, errors
    assert [row["step"] for row in read_table(tmp_path / "looks-0" / "panel.csv")] == ["1", "2"]
    assert not (tmp_path / "looks-1").exists()
    for rank in range(2):
        plain, looked_at = (torch.load(tmp_path / f"{kind}-{rank}.pt") for kind in ("without", "with"))
        for name, value in plain.items():
            assert torch.equal(value, looked_at[name]), name
