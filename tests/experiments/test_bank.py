"""The memory bank of the contrastive protocol: which one it was, whether it fits, and queries that are in it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from captum_fam.experiments.data.load import ScenesWithBoxes
from captum_fam.experiments.evaluation import evaluate
from captum_fam.experiments.protocols.contrastive import Contrastive
from captum_fam.experiments.two_part_model import TwoPartModel
from captum_fam.pooling import GMP
from captum_fam.support.memory_bank import MemoryBank
from tests.experiments.data_sets import Damaged, Filed
from tests.experiments.runs import make_panel


@pytest.fixture
def embeddings(model: TwoPartModel, scenes: ScenesWithBoxes) -> Tensor:
    with torch.no_grad():
        return model(torch.stack([scenes[item].image for item in range(len(scenes))]))


def _protocol(model: TwoPartModel, dataset: Any, bank: Any, **options: Any) -> Contrastive:
    panel = make_panel("fam", "localization")
    return Contrastive(model, dataset, panel, bank=bank, explain="all", batch_size=8, **options)


def _bank(embeddings: Tensor, scenes: ScenesWithBoxes, **options: Any) -> MemoryBank:
    return MemoryBank(embeddings, scenes.labels, scenes.class_names, **options)


def test_another_bank_of_as_many_rows_is_another_run(
    model: TwoPartModel, scenes: ScenesWithBoxes, embeddings: Tensor, tmp_path: Path
) -> None:
    queries, labels, names = Filed(scenes, range(4)), scenes.labels[4:], scenes.class_names
    first = embeddings[4:]
    second = first.clone()
    second[-1, 3] += 0.5
    for again in (first, first.clone()):
        evaluate(_protocol(model, queries, MemoryBank(again, labels, names)), tmp_path, examples=0)
    for other in (MemoryBank(second, labels, names), MemoryBank(first, labels.flip(0), names)):
        with pytest.raises(ValueError, match="bank was"):
            evaluate(_protocol(model, queries, other), tmp_path)


def test_a_bank_of_another_similarity_is_refused(
    model: TwoPartModel, scenes: ScenesWithBoxes, embeddings: Tensor
) -> None:
    with pytest.raises(ValueError, match="by squared-euclidean, the model decides by cosine"):
        _protocol(model, scenes, _bank(embeddings, scenes, similarity="squared-euclidean"))
    model.similarity = "squared-euclidean"
    _protocol(model, scenes, _bank(embeddings, scenes, similarity="squared-euclidean"))


def test_a_bank_of_other_classes_is_refused(model: TwoPartModel, scenes: ScenesWithBoxes, embeddings: Tensor) -> None:
    bank = MemoryBank(embeddings, scenes.labels, [*scenes.class_names, "one more"])
    n_classes = len(scenes.class_names)
    with pytest.raises(ValueError, match=f"bank: .*{n_classes + 1} classes, the dataset .*{n_classes}"):
        _protocol(model, scenes, bank)


@pytest.mark.parametrize("neighbors", ["predicted", "whole-class"])
def test_queries_whose_files_are_in_the_bank_are_left_out_of_their_own_neighbors(
    neighbors: Any, model: TwoPartModel, scenes: ScenesWithBoxes, embeddings: Tensor, tmp_path: Path
) -> None:
    queries = Filed(scenes, [5, 90, 7, 91, 100, 6])
    bank = Filed(scenes, range(20, 0, -1), folder="data/../data")  # 5, 7 and 6 are in it
    protocol = _protocol(model, queries, bank, k=1, neighbors=neighbors)
    assert protocol.settings()["leave_one_out"]
    (record,) = protocol.prepare(tmp_path / "features").run([0])
    cosines = torch.cosine_similarity(embeddings[queries.items][:, None], embeddings[bank.items][None], dim=2)
    cosines[[0, 2, 5], [15, 13, 14]] = -2
    expected = dict(enumerate(bank.labels[cosines.argmax(1)].tolist()))
    found = record.queries
    assert dict(zip(found.item, found.predicted, strict=True)) == expected
    assert found.label == [int(queries.labels[item]) for item in found.item]
    assert sorted(record.rows) == list(range(6))
    assert len(record.explained["fam"].kept["localization"]["energy"]) == 6


@pytest.mark.parametrize("in_file", [False, True])
def test_a_backend_that_is_not_installed_is_refused_before_there_are_files(
    in_file: bool, model: TwoPartModel, scenes: ScenesWithBoxes, embeddings: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    bank = _bank(embeddings, scenes, backend="faiss") if in_file else scenes
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ImportError, match=r'pip install "captum-fam\[faiss\]"'):
        _protocol(model, scenes, bank, backend="faiss")
    _protocol(model, scenes, scenes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backend": "faiss"}, 'backend="faiss" .*Euclidean.*backend="torch"'),
        ({"k": 0}, "k must be at least 1"),
    ],
)
def test_a_search_that_a_bank_cannot_do_is_refused_before_there_are_files(
    options: dict[str, Any], message: str, model: TwoPartModel, scenes: ScenesWithBoxes
) -> None:
    model.similarity = "euclidean"
    with pytest.raises(ValueError, match=message):
        _protocol(model, scenes, scenes, **options)


@pytest.mark.parametrize(
    ("broken", "said"),
    [({3}, "used: 1, the first is item 3: "), ({3, 5}, "used: 2, the first is item 3: ")],
)
def test_unusable_items_of_a_bank_are_counted_in_plain_words(
    broken: set[int], said: str, model: TwoPartModel, scenes: ScenesWithBoxes, tmp_path: Path
) -> None:
    with pytest.warns(UserWarning, match=f"{said}scene-3"):
        evaluate(_protocol(model, Filed(scenes, range(4)), Damaged(scenes, broken)), tmp_path, examples=0)


def test_other_boxes_and_another_pooling_are_another_run(model: TwoPartModel, scenes: ScenesWithBoxes) -> None:
    queries, bank = Filed(scenes, range(4)), Filed(scenes, range(4, 9))
    before = _protocol(model, queries, bank).settings()
    queries.records[2].boxes[0, 3] += 1
    model.tail.pooling = GMP()
    after = _protocol(model, queries, bank).settings()
    assert {key for key in before if before[key] != after[key]} == {"dataset", "tail"}


def test_files_of_other_folders_are_other_images(model: TwoPartModel, scenes: ScenesWithBoxes) -> None:
    protocol = _protocol(model, Filed(scenes, range(9)), Filed(scenes, range(9), folder="elsewhere"))
    assert not protocol.settings()["leave_one_out"]


@pytest.mark.filterwarnings("error")
def test_a_bank_that_holds_the_queries_is_said(
    model: TwoPartModel, scenes: ScenesWithBoxes, embeddings: Tensor, tmp_path: Path
) -> None:
    queries = Filed(scenes, range(12))  # two batches
    without = MemoryBank(embeddings[12:], scenes.labels[12:], scenes.class_names)
    evaluate(_protocol(model, queries, without), tmp_path / "without", examples=0)
    with pytest.warns(UserWarning, match="seems to hold the queries") as said:
        evaluate(_protocol(model, queries, _bank(embeddings, scenes)), tmp_path / "with", examples=0)
    assert len(said) == 1
