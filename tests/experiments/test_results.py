"""The commands of the tables in docs/results: all of them are such as the command line takes."""

from __future__ import annotations

import shlex

import pytest

from benchmarks import results
from captum_fam.cli.main import make_parser
from captum_fam.experiments.measures import Panel
from captum_fam.experiments.table_methods import get_methods


@pytest.mark.parametrize("name", results.RUNS)
def test_the_command_of_every_table_is_accepted(name: str) -> None:
    words = shlex.split(f"{results.RUNS[name]} --data cub50")
    words += [] if "--model" in words else ["--model", "squeezenet"]
    options = make_parser("evaluate").parse_args(words)
    Panel(get_methods(options.methods, options.foil), options.measures)
    assert name in results.TITLES


@pytest.mark.parametrize("code", [0, 1, 2, 130])
def test_images_that_were_left_out_do_not_stop_the_tables(code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "captum_fam", lambda words: code)
    if code < 2:
        results.call("evaluate few-shot")
        return
    with pytest.raises(SystemExit) as stopped:
        results.call("evaluate few-shot")
    assert stopped.value.code == code
