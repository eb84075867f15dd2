from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from PIL import Image

from captum_fam.cli.main import main
from captum_fam.demo.run import DemoResult, DemoRow, run_demo


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> DemoResult:
    return run_demo(tmp_path_factory.mktemp("demo"), seed=3, episodes=12)


def test_the_demo_draws_a_figure(result: DemoResult) -> None:
    assert result.figure.name == "demo.png"
    width, height = Image.open(result.figure).size
    assert 0.9 * height < width < 1.5 * height  # query, support and foil above three maps


def test_the_demo_writes_a_report_of_right_and_wrong_matches(result: DemoResult) -> None:
    assert result.report.name == "report.html"
    page = result.report.read_text("utf-8")
    assert page.count("<article") == 10
    verdicts = re.findall(r"<strong>(Right|Wrong)</strong>", page)
    assert len(verdicts) == 10
    assert verdicts == sorted(verdicts, reverse=True)  # wrong ones first
    assert len({*verdicts}) == 2
    methods = re.findall(r'name="method" value="\d"[^>]*><span><bdi>([\w-]+)', page)
    assert methods == ["similarity-cam", "fam"]
    assert "less the other classes" in page


def test_most_queries_of_unseen_classes_are_matched(result: DemoResult) -> None:
    assert result.n_queries == 60
    assert result.n_matched > 30  # chance: 12


def test_a_foil_finds_the_shared_object_better_than_support_blind_maps(result: DemoResult) -> None:
    energy = {row.title: row.energy for row in result.rows}
    assert energy["SimilarityCAM with foil"] > energy["mean activation"] + 0.1
    assert energy["mean activation"] > energy["constant map (area)"] > 0.05


def test_every_row_is_printed_with_its_numbers(result: DemoResult) -> None:
    text = str(result)
    lines = [" ".join(line.split()) for line in text.splitlines()]
    for row in result.rows:
        numbers = f"{row.title} {row.energy:.3f} ± {row.standard_error:.3f} {row.hits:.0%}"
        assert [line for line in lines if line.startswith(numbers)]
        assert (row.coverage is not None) is row.title.startswith("SimilarityCAM")
    assert text.count("(explains 100 % of the score)") == 2
    assert f"{result.n_matched} " in text
    assert f"figure: {result.figure}\n" in text
    assert text.splitlines()[-1] == str(result.report)


def test_the_same_seed_gives_the_same_numbers(tmp_path: Path) -> None:
    one, two, other = (run_demo(tmp_path, seed=seed, episodes=2).rows for seed in (5, 5, 6))
    assert one == two != other


def test_maps_without_a_positive_part_are_left_out_and_counted() -> None:
    energy, hits = torch.tensor([0.2, float("nan"), 0.4, 0.6]), torch.tensor([True, False, True, False])
    row = DemoRow.of("a", energy, hits)
    assert row == DemoRow("a", pytest.approx(0.4), pytest.approx(0.2 / 3**0.5), 0.5, n_zero=1)
    assert row.cells == ["a", "0.400 ± 0.115", "50%", "(1 zero maps left out)"]
    row = DemoRow.of("a", energy, hits, torch.tensor([0.1, float("nan"), 0.3, 0.2]))
    assert row.coverage == pytest.approx(0.2)
    assert row.cells[-1] == "(explains 20 % of the score, 1 zero maps left out)"


def test_the_command_runs_the_demo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def short(out: Path, *, seed: int) -> DemoResult:
        return run_demo(out, seed=seed, episodes=2)

    monkeypatch.setattr("captum_fam.cli.demo.run_demo", short)
    assert main(["demo", "--out", str(tmp_path / "new"), "--seed", "1"]) == 0
    assert (tmp_path / "new" / "demo.png").is_file()
    out = capsys.readouterr().out
    assert "energy inside" in out
    assert out.splitlines()[-1] == str(tmp_path / "new" / "report.html")
    assert (tmp_path / "new" / "report.html").is_file()
