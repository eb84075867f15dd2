"""Options of the command line from the fields of dataclasses."""

from __future__ import annotations

import argparse
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from captum_fam.cli.options import add_fields, check_fields, default_out, names_of, option, read_fields
from captum_fam.cli.ranges import above, at_least, between


@dataclass(frozen=True)
class Walk:
    name: str = option("of the walk")
    steps: int = option("per minute", 5, within=at_least(1))
    pace: Literal["slow", "fast"] = option("of the walk", "slow")
    speed: float | None = option("in m/s; default: measured", None)
    stops: tuple[int, ...] = option("on the way, of 100 %", (1, 2))
    with_dog: bool = option("take the dog", False)
    aloud: bool = option("say it", True)
    alone: bool | None = option("or not; default: it depends", None)
    out: Path | None = option("for notes", None)
    inner: int = 7  # no help: no option


def parse(*words: str, **options: Any) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="captum-fam walk")
    add_fields(parser, Walk, **options)
    return parser.parse_args(words)


def test_what_is_not_said_has_the_default_of_the_field() -> None:
    assert read_fields(Walk, parse("--name", "home")) == Walk("home")


def test_each_type_is_read_as_its_field_says() -> None:
    words = "--name x --steps 3 --pace fast --speed 1.5 --stops 4,5,6 --with-dog --no-aloud --no-alone --out notes"
    assert read_fields(Walk, parse(*words.split())) == Walk(
        "x", 3, "fast", 1.5, (4, 5, 6), True, False, False, Path("notes")
    )


def test_skipped_fields_and_other_defaults() -> None:
    options = parse(skip=("stops",), defaults={"name": "round", "steps": 9, "missing": 1})
    assert not hasattr(options, "stops")
    assert read_fields(Walk, options, inner=8) == Walk("round", 9, inner=8)


def test_a_field_can_become_one_that_must_be_given(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse("--name", "x", defaults={"steps": MISSING})
    assert "--steps" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words", [[], ["--name", "x", "--steps", "0"], ["--name", "x", "--pace", "idle"], ["--name", "x", "--inner", "3"]]
)
def test_words_that_do_not_fit_are_refused(words: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(*words)
    assert caught.value.code == 2


def test_the_help_names_the_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse("--help")
    text = " ".join(capsys.readouterr().out.split())
    assert "--steps N per minute; default: 5" in text
    assert "--pace {slow,fast} of the walk; default: slow" in text
    assert "on the way, of 100 %; default: 1,2" in text
    assert "--with-dog take the dog --aloud" in text
    assert "inner" not in text


def test_names_are_read_once_each_and_must_be_known() -> None:
    read = names_of(("fam", "cam"), "method")
    assert read("fam, cam,fam") == ("fam", "cam")
    with pytest.raises(argparse.ArgumentTypeError, match="unknown method 'cat', choose from fam, cam"):
        read("fam,cat")


def test_what_is_written_is_called_as_the_command() -> None:
    assert default_out(argparse.ArgumentParser(prog="captum-fam train head"), ".pt") == Path("captum-fam-train-head.pt")


@dataclass(frozen=True)
class Ranged:
    way: int = option("classes", 5, within=at_least(2))
    share: float = option("of the range", 0.2, within=between(0, 1, without_most=True))
    rates: tuple[float, ...] = option("of learning", (0.1,), within=above(0))
    cell: int | None = option("in pixels", None, within=at_least(1))
    pace: Literal["slow", "fast"] = option("of the walk", "slow")
    weight: float = option("any finite number", 0.0)

    def __post_init__(self) -> None:
        check_fields(self)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("way", 1, "way must be at least 2, got 1"),
        ("way", 10**400, None),
        ("share", -0.1, "share must be at least 0 and below 1, got -0.1"),
        ("share", 1, "share must be at least 0 and below 1"),
        ("share", float("nan"), "share must be at least 0 and below 1, got nan"),
        ("rates", (0.1, 0.0), "rates must be above 0, got 0.0"),
        ("cell", 0, "cell must be at least 1, got 0"),
        ("pace", "idle", "pace must be one of slow, fast, got 'idle'"),
        ("weight", float("inf"), "weight must be finite, got inf"),
    ],
)
def test_a_value_outside_its_range_is_refused_from_python_and_on_the_command_line(
    field: str, value: Any, message: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = argparse.ArgumentParser()
    add_fields(parser, Ranged)
    word = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
    if message is None:
        assert getattr(Ranged(**{field: value}), field) == value
        return
    with pytest.raises(ValueError, match=message):
        Ranged(**{field: value})
    with pytest.raises(SystemExit):
        parser.parse_args([f"--{field}={word}"])
    assert f"argument --{field}: " in capsys.readouterr().err


@pytest.mark.parametrize(("field", "value"), [("way", 2.5), ("way", True), ("way", "3"), ("share", "x"), ("cell", 1.0)])
def test_a_value_of_another_type_is_refused(field: str, value: object) -> None:
    with pytest.raises(TypeError, match=f"{field} must be a (whole )?number, "):
        Ranged(**{field: value})  # type: ignore[arg-type]


def test_the_values_at_the_ends_of_a_range_are_read() -> None:
    parser = argparse.ArgumentParser()
    add_fields(parser, Ranged)
    words = ["--way", "2", "--share", "0", "--rates", "1e-9,5", "--cell", "1", "--weight=-3"]
    assert read_fields(Ranged, parser.parse_args(words)) == Ranged(2, 0.0, (1e-9, 5.0), 1, "slow", -3.0)
