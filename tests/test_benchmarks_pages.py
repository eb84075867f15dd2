"""What the benchmarks share: cells of tables, what is kept, the command line and the command in a page."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from benchmarks import pages
from benchmarks.command_line import command, parser_for
from benchmarks.networks import NETWORKS
from benchmarks.pages import interval, read
from benchmarks.pieces import file_name, kept, kept_tensors, write_json
from captum_fam.metrics import Result


@pytest.mark.parametrize(
    ("result", "options", "cell"),
    [
        (Result(0.25, 0.125, n=4), {}, "0.250 ± 0.125"),
        (Result(0.25, 0.125, n=4), {"of": 4, "digits": 2, "sign": True}, "+0.25 ± 0.12"),
        (Result(0.25, math.nan, n=1), {"of": 3}, "0.250 (2 left out)"),
        (Result(-0.5, 0.25, n=2), {"sign": True}, "-0.500 ± 0.250"),
        (Result(math.nan, math.nan, n=0), {"of": 2}, "– (2 left out)"),
        (Result(math.nan, math.nan, n=0), {}, "–"),
    ],
)
def test_a_cell_has_the_mean_its_interval_and_what_is_left_out(result: Result, options: dict, cell: str) -> None:
    assert interval(result, **options) == cell


def test_the_results_of_a_run_are_read_as_cells(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text('{"counts": {"explained": 4}}')
    (tmp_path / "results.csv").write_text(
        "method,measure,mean,ci95,n\n,accuracy,0.5,0.125,8\nfam,iou,0.25,0.1,3\nfam,swap,,,0\nfam,lift,2,nan,4\n"
    )
    results = read(tmp_path)
    assert results.model == ["accuracy 0.500 ± 0.125 (n = 8)"]
    assert results.cells == {"fam": {"iou": "0.250 ± 0.100 (1 left out)", "swap": "– (4 left out)", "lift": "2.000"}}


def test_what_is_kept_is_not_made_again(tmp_path: Path) -> None:
    made = iter([{"a": (1.5, math.nan)}])
    path = tmp_path / "deeper" / f"{file_name('grad-cam++ (grad-cam), rows')}.json"
    assert path.stem == "grad-cam++-grad-cam-rows"
    for _ in range(2):
        first, second = kept(path, lambda: next(made))["a"]
        assert (first, math.isnan(second)) == (1.5, True)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_tensors_are_kept_under_their_names(tmp_path: Path) -> None:
    made = iter([{"map": torch.eye(2)}])
    for _ in range(2):
        assert torch.equal(kept_tensors(tmp_path / "deeper" / "a.pt", lambda: next(made))["map"], torch.eye(2))


def test_what_cannot_be_written_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", [1])
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", [object()])
    assert kept(tmp_path / "a.json", lambda: None) == [1]


def test_the_command_in_a_page_has_what_differs_from_the_defaults_but_no_folders() -> None:
    parser = parser_for("benchmarks.x", None, names=("a", "b"), runs="runs/x", out="docs", quick="less")
    parser.add_argument("--at-most", type=int, default=4)
    assert command(parser, parser.parse_args([])) == "python -m benchmarks.x"
    words = "b --quick --at-most 3 --shared s --runs r --out o".split()
    assert command(parser, parser.parse_args(words)) == "python -m benchmarks.x b --quick --at-most 3"


def test_an_unknown_name_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    parser = parser_for("benchmarks.x", None, names=("a", "b"), runs="runs/x", out="docs")
    with pytest.raises(SystemExit, match="2"):
        parser.parse_args(["a", "c"])
    assert "unknown: c" in capsys.readouterr().err


def test_a_network_is_named_for_a_command() -> None:
    small, large = NETWORKS.values()
    assert small.options(Path("s")) == "--model squeezenet --weights s/weights/squeezenet1_0_imagenet.pth"
    assert large.options(Path("s")) == "--model efficientnet_lite0"
    assert large.weights(Path("s")) is None


@pytest.mark.parametrize("code", [0, 1, 2, 130])
def test_only_a_command_that_fails_stops_a_page(code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # 1: the command is done, but for images that it has named.
    monkeypatch.setattr(pages, "captum_fam", lambda words: code)
    if code < 2:
        pages.call("evaluate few-shot")
        return
    with pytest.raises(SystemExit) as stopped:
        pages.call("evaluate few-shot")
    assert stopped.value.code == code
