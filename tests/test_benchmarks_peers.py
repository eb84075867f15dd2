"""The comparison with peers: what it asks, how it looks for traces, and the whole of it on the demo's network."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from benchmarks.peers import page, results, with_xaitk, with_zennit
from benchmarks.peers.changes import changes, look
from benchmarks.peers.mosaics import SPLIT, Mosaics
from benchmarks.peers.needs import COLUMNS, needs, question_for, subject_of
from benchmarks.peers.ours import ROWS
from benchmarks.peers.question import Question, Row, Subject, similarity
from benchmarks.peers.results import Result, explain_mosaic, failed, measured, run_row
from benchmarks.peers.rows import PACKAGES, all_rows, missing
from captum_fam.experiments import Mosaic, Panel, get_methods, load_dataset, load_model
from captum_fam.images import unnormalize

SCENES = "scenes:144"


@pytest.fixture(scope="module")
def mosaics(tmp_path_factory: pytest.TempPathFactory) -> Mosaics:
    return Mosaics("demo", None, SCENES, tmp_path_factory.mktemp("features"), 3, "features.2")


@pytest.fixture
def model() -> nn.Module:
    return subject_of().model


def leaves_a_hook(subject: Subject, question: Question) -> Tensor:
    subject.layer.register_forward_hook(lambda *_: None)
    return torch.ones(len(question.targets), 1, 2, 2)


def result_of(energies: list[float], coverage: float = 0.5, ratio: float = 2.0) -> Result:
    rest = {"coverage": [coverage], "peak": [0.3]}
    values = [{"energy": [one], "hit": [one], "AUROC": [one], **rest} for one in energies]
    return Result(mosaics=values, seconds=1.0, ratio=ratio, four_ratio=None, mib=2.0, mib_ratio=ratio, error="")


def test_a_hook_that_stays_is_seen() -> None:
    found = needs(Row("planted", "leaves a hook", leaves_a_hook))
    assert found["left by a call"] == found["in training mode"] == "1 hooks left"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda model: None, []),
        (lambda model: model[0].register_full_backward_hook(lambda *_: None), ["1 hooks left"]),
        (lambda model: model.train(), ["training mode changed"]),
        (lambda model: model.requires_grad_(False), ["requires_grad changed"]),
        (lambda model: model(torch.ones(1, 3, 8, 8)).sum().backward(), [".grad written"]),
        (lambda model: model[1].running_mean.add_(1), ["weights or buffers changed"]),
        (lambda model: model.__setitem__(2, nn.Identity()), ["modules replaced"]),
        (lambda model: torch.rand(1), ["random numbers drawn"]),
    ],
    ids=lambda value: value[0] if isinstance(value, list) and value else "",
)
def test_every_kind_of_trace_has_its_words(
    model: nn.Module, change: Callable[[nn.Module], object], words: list[str]
) -> None:
    before = look(model)
    change(model)
    assert changes(before, look(model)) == words


def test_the_explained_score_is_the_mean_cosine_minus_the_contrast() -> None:
    subject = subject_of()
    question = question_for(ROWS[0], subject)
    with torch.no_grad():
        embedding = subject.model(question.image)
    by_class = torch.stack([cosine_similarity(embedding, supports).mean() for supports in question.supports])
    expected = {
        "none": by_class[1],
        "others": by_class[1] - (by_class[0] + by_class[2]) / 2,
        "gallery": by_class[1] - cosine_similarity(embedding, question.gallery).mean(),
    }
    for contrast, score in expected.items():
        asked = replace(question, contrast=contrast)
        torch.testing.assert_close(similarity(embedding, asked.directions), score[None], atol=1e-6, rtol=1e-5)


def test_the_mosaics_are_those_of_the_protocol(mosaics: Mosaics, tmp_path: Path) -> None:
    model = load_model("demo", None)
    panel = Panel(get_methods("uniform"), measures=())
    protocol = Mosaic(model, load_dataset(SCENES, SPLIT, model), panel, mosaics=3)
    prepared = protocol.prepare(tmp_path / "features")
    (record,) = prepared.run([1])
    question = mosaics.question(1, (2,), "none")
    labels = mosaics.sampler.episode(1).classes
    example = prepared.example(record, 0, int(labels[2]))
    torch.testing.assert_close(unnormalize(question.image[0], model.mean, model.std), example.image)
    height, width = (side // 2 for side in question.image.shape[2:])
    cell = mosaics.features.images(mosaics.sampler.episode(1).query[2])[0]
    torch.testing.assert_close(question.image[0, :, height:, :width], cell)


def test_the_measures_are_of_the_cell_of_each_class(mosaics: Mosaics) -> None:
    question = mosaics.question(0, (1, 2), "others")
    maps = torch.zeros(2, 1, 2, 2)
    maps[0, 0, 0, 1] = maps[1, 0, 1, 1] = 3.0
    with torch.no_grad():
        embedding = mosaics.subject.model(question.image)
    torch.testing.assert_close(mosaics.embedding(0), embedding)
    found = measured(maps, embedding, question, 2)
    assert found["hit"] == [1, 0]
    assert found["peak"] == [3, 3]
    assert found["coverage"] == pytest.approx((3 / similarity(embedding, question.directions)).tolist(), rel=1e-4)


@pytest.mark.parametrize("row", [row for row in ROWS if row.package == "captum-fam"], ids=lambda row: row.name)
def test_the_maps_of_the_table_add_up_as_they_promise(mosaics: Mosaics, row: Row) -> None:
    values = explain_mosaic(row, mosaics, 0)
    adds_up = "SimilarityCAM" in row.name or "pairs" in row.name
    assert len(values["energy"]) == 4
    assert (values["coverage"] == pytest.approx([1.0] * 4, abs=1e-3)) == adds_up


def test_one_run_for_all_classes_gives_the_maps_of_single_runs(mosaics: Mosaics) -> None:
    for row in ROWS[:5]:
        together = row.explain(mosaics.subject, mosaics.question(0, (0, 3), row.contrast))
        single = [row.explain(mosaics.subject, mosaics.question(0, (target,), row.contrast)) for target in (0, 3)]
        torch.testing.assert_close(together, torch.cat(single))


@pytest.mark.parametrize("package", PACKAGES)
def test_every_installed_package_gets_numbers(mosaics: Mosaics, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if package in missing():
        pytest.skip(f"{package} is not installed: {missing()[package]}")
    monkeypatch.setattr(results, "ROUNDS", 1)
    monkeypatch.setattr(with_xaitk, "STEP", 4)
    row = next(row for row in all_rows() if row.package == package)
    result = run_row(row, mosaics, 2, 0.0)
    assert len(result["mosaics"]) == 1
    assert all(math.isfinite(value) for values in result["mosaics"][0].values() for value in values)
    assert result["ratio"] > 0
    assert result["mib_ratio"] > 0


def test_grad_cam_needs_gradients_and_leaves_some() -> None:
    if "grad-cam" in missing():
        pytest.skip("grad-cam is not installed: pip install grad-cam")
    found = needs(next(row for row in all_rows() if row.package == "grad-cam"))
    assert [*found] == [*COLUMNS]
    assert found["no_grad"] == found["frozen"] == "RuntimeError"
    assert ".grad written" in found["left by a call"]


def test_the_sentences_follow_from_the_numbers() -> None:
    ours, peer, few = (
        Row("captum-fam", "ours", leaves_a_hook),
        Row("grad-cam", "theirs", leaves_a_hook),
        Row("torchcam", "few", leaves_a_hook),
    )
    rows = {
        ours: result_of([0.5, 0.7] * 6, coverage=1.0),
        peer: result_of([0.6, 0.8] * 6, ratio=3.0),
        few: result_of([1.0]),
    }
    first = next(page.duels(rows))
    adding, time, memory, left_out = page.sentences(rows)
    assert first.startswith(
        "Best by energy: grad-cam: theirs (0.700). The best of captum-fam is captum-fam: ours (0.600)"
    )
    assert "the first is ahead: +0.100 ± 0.000 on the 12 mosaics" in first
    smoothed = Row("captum-fam", "ours", leaves_a_hook, smoothed=True)
    with_smoothed = {**rows, smoothed: result_of([0.9] * 12)}
    assert next(page.duels(with_smoothed)) == first, "a smoothed map is compared with smoothed maps only"
    assert adding == "Maps that add up to the score: captum-fam: ours."
    assert time.startswith("Least time for one map, in bare passes: captum-fam: ours 2.00")
    assert memory.startswith("Least memory")
    assert left_out.endswith("torchcam: few.")


def test_the_page_names_packages_that_are_missing_and_rows_that_fail(tmp_path: Path) -> None:
    broken = Row("grad-cam", "broken", leaves_a_hook)
    rows = {"Net": {ROWS[0]: result_of([0.5] * 12), broken: failed(ValueError("no such layer\nmore"))}}
    found = {"LayerFAM": dict.fromkeys(COLUMNS, "yes")}
    page.write(tmp_path / "page.md", "command", found, rows, {"zennit": "pip install zennit"})
    text = (tmp_path / "page.md").read_text()
    assert "zennit is not installed and has no rows: `pip install zennit`." in text
    assert "| grad-cam: broken | ValueError: no such layer |" in text
    assert "| captum-fam: LayerFAM | 0.500 ± 0.000 | 0.500 ± 0.000 | 0.500 ± 0.000 | 12 | 0.50 [0.50, 0.50] |" in text


@pytest.fixture
def zennit() -> None:
    if "zennit" in missing():
        pytest.skip("zennit is not installed: pip install zennit")


@pytest.mark.usefixtures("zennit")
def test_the_relevance_of_a_pooled_layer_is_the_share_of_each_cell_in_the_cosine() -> None:
    subject = subject_of()
    question = question_for(ROWS[0], subject)
    other = question.supports[0, :1]
    found, activation = with_zennit.relevance(subject.model, subject.layer, question.image, other)
    with torch.no_grad():
        embedding = subject.model(question.image)
    shares = embedding * other / (embedding.norm() * other.norm())
    expected = (
        shares[0, :, None, None] * activation[0] / activation[0].sum((1, 2), keepdim=True).clamp_min(1e-12)
    ).sum(0)
    torch.testing.assert_close(found[0], expected, rtol=1e-3, atol=1e-6)
    assert float(found.sum()) == pytest.approx(float(cosine_similarity(embedding, other)), rel=1e-3)


@pytest.mark.usefixtures("zennit")
def test_a_mutual_match_of_cells_is_found_on_both_sides() -> None:
    left = torch.tensor([[[0.0, 5.0, 9.0]]])
    right = torch.tensor([[[8.0, 1.0]]])
    here, there = with_zennit.matches(left, right)
    assert list(zip(here.tolist(), there.tolist(), strict=True)) == [(0, 1), (2, 0)]
