"""The tables of docs/results: their rows, their pages, paired differences, the support's side, random networks."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.networks import NETWORKS
from benchmarks.paired import paired_table
from benchmarks.randomization import METHODS, SHOT, TWO_RANDOM, cell, correlations, parts_of
from benchmarks.results import PAGES, Page, Run, commands_of, folder_of, make, sections, small_copy
from captum_fam import SimilarityToSupport, SupportSet
from captum_fam.attr import get_method
from captum_fam.cli.plugins import load_plugin
from captum_fam.experiments import Panel, evaluate, get_methods
from captum_fam.experiments.data.episodes import EpisodeItems
from captum_fam.experiments.data.load import ScenesWithBoxes
from captum_fam.experiments.protocols import get_protocol
from captum_fam.experiments.protocols.mosaic import Mosaic
from captum_fam.experiments.records import MethodColumns, QueryColumns, UnitRecord
from captum_fam.experiments.two_part_model import Tail, TwoPartModel
from captum_fam.pooling import GAP, GMP
from captum_fam.similarity import Bilinear

RUNS = {name: run for page in PAGES.values() for name, run in page.runs.items()}


def _words(name: str, network: str, runs: Path) -> list[str]:
    """A command of a run, where the head is there already."""
    for split in ("base", "train", "retrieval-train"):
        (runs / f"head-{network}-{split}.pt").touch()
    return shlex.split(commands_of(name, RUNS[name], NETWORKS[network], Path("shared"), runs)[-1])


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("name", RUNS)
def test_the_rows_and_measures_of_every_table_exist(name: str, network: str, tmp_path: Path) -> None:
    if RUNS[name].plugin:
        load_plugin(RUNS[name].plugin.split()[1])
    words = _words(name, network, tmp_path)
    start = words.index("evaluate")
    protocol = get_protocol(words[start + 1])
    options = dict(zip(words[start + 2 :: 2], words[start + 3 :: 2], strict=True))
    measures = tuple(filter(None, options.get("--measures", "swap").split(",")))
    methods = get_methods(options["--methods"])
    Panel(methods, measures).check(protocol.gives, name)
    assert {method.foil for method in methods} <= {None, "others", "runner-up"} | (
        {"gallery"} if protocol.has_gallery else set()
    )
    assert protocol.has_positions or not any(method.needs_images for method in methods)
    # A row that looks at no support stands in every table.
    assert any(method.base == "mean-activation" for method in methods)
    assert ("--head" in options) == RUNS[name].head
    assert options["--out"] == str(folder_of(name, NETWORKS[network], tmp_path))
    assert not any("{" in word for word in words)


def test_a_quick_run_has_a_twentieth_of_the_units() -> None:
    few = shlex.split(commands_of("mosaic", RUNS["mosaic"], NETWORKS["squeezenet"], Path("s"), Path("r"), 20)[-1])
    assert few[few.index("--mosaics") + 1] == str(RUNS["mosaic"].size[1] // 20)  # type: ignore[index]


def _cub(folder: Path, images: int) -> Path:
    data = folder / "data/cub50"
    (data / "images").mkdir(parents=True)
    (data / "classes.txt").write_text("1 a\n2 b\n")
    for name, value in {
        "images.txt": "x.jpg",
        "image_class_labels.txt": "1",
        "bounding_boxes.txt": "0 0 5 5",
        "train_test_split.txt": "1",
    }.items():
        (data / name).write_text("".join(f"{number} {value}\n" for number in range(images)))
    (folder / "weights").mkdir()
    return folder


def test_the_small_copy_has_every_third_photograph(tmp_path: Path) -> None:
    shared = _cub(tmp_path / "shared", 8)
    (shared / "data/cub50/images/x.jpg").write_text("a photograph")
    for _ in range(2):
        small = small_copy(shared, tmp_path / "small") / "data/cub50"
    ids = [line.split()[0] for line in (small / "images.txt").read_text().splitlines()]
    assert ids == ["0", "3", "6"]
    assert (small / "image_class_labels.txt").read_text() == "0 1\n3 1\n6 1\n"
    assert (small / "classes.txt").read_text() == "1 a\n2 b\n"
    assert (small / "images/x.jpg").read_text() == "a photograph"


def _record(unit: int, first: list[Any], second: list[Any]) -> UnitRecord:
    count = len(first)
    queries = QueryColumns([*range(count)], [0] * count, [0] * count, [0.5] * count, [1] * count)
    flags = [0] * count
    explained = {
        name: MethodColumns(flags, flags, flags, {"faithfulness": {"drop": column}})
        for name, column in {"mean-activation": first, "fam": second}.items()
    }
    return UnitRecord(unit, queries, [*range(count)], explained)


def test_differences_are_paired_by_query_and_averaged_by_unit(tmp_path: Path) -> None:
    # Differences: 0.1 and 0.3 in unit 0, whose mean is 0.2; 0.4 in unit 2, where one query has no value.
    records = [_record(0, [0.5, 0.1], [0.6, 0.4]), _record(1, [], []), _record(2, [0.5, 0.9], [0.9, None])]
    (tmp_path / "records-0.jsonl").write_text("".join(json.dumps(r.to_json()) + "\n" for r in records))
    lines = paired_table(tmp_path, ["drop"])
    # The mean of 0.2 and 0.4 is 0.3; their deviation is 0.1, and 1.96 * 0.1 / sqrt(2) is 0.139.
    assert lines[2:] == [
        "| method − mean-activation | drop | pairs |",
        "|---|---|---|",
        "| fam | +0.300 ± 0.139 * | 3 |",
    ]


def test_a_page_is_written_when_the_runs_of_all_networks_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    called = []

    def call(command: str) -> None:
        called.append(command)
        folder = Path(shlex.split(command)[-1])
        folder.mkdir(parents=True)
        (folder / "summary.json").write_text('{"counts": {"explained": 4}}')
        (folder / "results.csv").write_text(
            "method,measure,mean,ci95,n\n,accuracy,0.5,0.1,4\nfam,cell-hit,0.25,0.125,4\n"
        )

    monkeypatch.setattr("benchmarks.results.call", call)
    page = Page("Two birds", {"birds": Run("mosaic --methods fam[layers={middle}]", ("mosaics", 40))}, "A note.")
    small, large = NETWORKS.values()
    make("birds", page, [small], tmp_path, tmp_path / "runs", tmp_path / "out", 1)
    assert f"birds-{large.name} is not there" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()
    make("birds", page, [large], tmp_path, tmp_path / "runs", tmp_path / "out", 1)
    text = (tmp_path / "out/birds.md").read_text()
    assert [f"captum-fam {command}" in text for command in called] == [True, True]
    assert f"## {large.title}\n\nModel: accuracy 0.500 ± 0.100 (n = 4)." in text
    assert text.count("| fam | 0.250 ± 0.125 |") == 2
    assert "A note." in text
    assert [line for line in sections(page, tmp_path / "runs") if line.startswith("#")] == [
        f"## {small.title}",
        f"## {large.title}",
    ]


@pytest.mark.parametrize("foil", [None, "others", "runner-up"])
@pytest.mark.parametrize("head", [None, nn.Linear(5, 4, bias=False)])
def test_the_support_side_of_a_cosine_is_the_exact_map(foil: Any, head: nn.Module | None) -> None:
    load_plugin("benchmarks.support_side")
    tail = Tail(GAP(), head).double().eval()
    mosaic = torch.rand(2, 5, 7, 6, dtype=torch.float64).repeat_interleave(3, 0)
    support = SupportSet(torch.rand(6, 5, 4, 3, dtype=torch.float64), [0, 0, 1, 1, 2, 2])
    scores = SimilarityToSupport(tail, support, foil=foil)
    target = torch.tensor([0, 1, 2, 2, 1, 0])
    made, expected = (
        get_method(name).create(scores, tail.activation).attribute(mosaic, target=target)
        for name in ("pair-support", "similarity-cam")
    )
    assert made.shape == (6, 1, 7, 6)
    torch.testing.assert_close(made, expected)


def test_the_support_side_is_another_map_where_it_matters_who_is_asked() -> None:
    load_plugin("benchmarks.support_side")
    tail, matrix = Tail(GAP()).double().eval(), torch.rand(3, 3, dtype=torch.float64)
    image, supports = torch.rand(1, 3, 4, 5, dtype=torch.float64), torch.rand(2, 3, 2, 2, dtype=torch.float64)
    scores = SimilarityToSupport(tail, SupportSet(supports), Bilinear(matrix))
    maps = {
        name: get_method(name).create(scores, tail.activation).attribute(image, target=0).flatten()
        for name in ("pair-support", "similarity-cam")
    }
    # q' M f for each position f of the image, where the support images are the queries q; and f' M q.
    embedding, positions = supports.mean((0, 2, 3)), image[0].flatten(1) / 20
    torch.testing.assert_close(maps["pair-support"], embedding @ matrix @ positions)
    torch.testing.assert_close(maps["similarity-cam"], positions.T @ matrix @ embedding)


def test_scores_without_images_have_no_support_side() -> None:
    load_plugin("benchmarks.support_side")
    scores = SimilarityToSupport(Tail(GMP()), SupportSet(torch.rand(4, 3, 2, 2), [0, 0, 1, 1]), aggregate="prototype")
    with pytest.raises(ValueError, match="scores must be means"):
        get_method("pair-support").create(scores, scores.model.activation)


def test_a_table_has_the_support_side_as_a_row(scenes: ScenesWithBoxes, model: TwoPartModel, tmp_path: Path) -> None:
    load_plugin("benchmarks.support_side")
    names = "similarity-cam-foil,pair-support-foil,similarity-cam[smooth=3]-foil,pair-support[smooth=3]-foil"
    result = evaluate(
        Mosaic(model, scenes, Panel(get_methods(names), ("swap",)), shot=2, mosaics=2), tmp_path, examples=0
    )
    first, second, third, fourth = result.methods.values()
    for one, other in ((first, second), (third, fourth)):
        for measure in ("swap", "cell-energy", "cell-hit", "cell-auroc"):
            assert other[measure].value == pytest.approx(one[measure].value, abs=1e-3)


def test_the_cascade_compares_every_method_with_its_own_map(model: TwoPartModel) -> None:
    assert parts_of(model.backbone) == ["3", "2", "0"]
    images = torch.rand(2 * (2 + SHOT), 3, 32, 32, generator=torch.Generator().manual_seed(0))
    query, support = torch.arange(4).view(2, 2), torch.arange(2 * SHOT).view(2, SHOT)
    found = correlations(model, images, EpisodeItems(0, torch.arange(2), support, query))
    assert [*found] == ["3", "2", "0", TWO_RANDOM]
    assert all([*columns] == METHODS.split(",") for columns in found.values())
    assert all(len(column) == 4 for columns in found.values() for column in columns.values())
    assert found["0"]["center"] == [1, 1, 1, 1]
    assert max(found["0"]["mean-activation"]) < 0.999


def test_the_cell_of_a_cascade_counts_what_it_leaves_out() -> None:
    assert cell([0.2, 0.4, None]) == "0.30 ± 0.14 (1 left out)"
    assert cell([None, None]) == "– (2 left out)"
