"""The program around the subcommands: its table, its errors, and plug-ins."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from argparse import ArgumentParser
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest

from captum_fam import __version__
from captum_fam._files import need
from captum_fam.cli.main import COMMANDS, main, make_parser


@pytest.fixture
def fresh_modules() -> Iterator[None]:
    """Modules that a test imports are forgotten after it."""
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if not name.startswith(("captum_fam", "torch")):
            del sys.modules[name]


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"captum-fam {__version__}\n"


def test_the_module_runs_as_a_program() -> None:
    run = subprocess.run([sys.executable, "-m", "captum_fam", "explain"], capture_output=True, text=True, check=False)
    assert run.returncode == 2
    assert "captum-fam explain: error: the following arguments are required: QUERY" in run.stderr


def test_the_help_lists_every_command_with_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    for name, command in COMMANDS.items():
        assert re.search(rf"^  {name} +{command.help}$", text, re.MULTILINE)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_of_the_table_is_there_and_has_a_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert import_module(COMMANDS[command].module).add_options
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    assert f"usage: captum-fam {command} " in capsys.readouterr().out


@pytest.mark.parametrize("words", [[], ["dance"], ["--loud", "demo"], ["demo", "--loud"], ["demo", "--version"]])
def test_words_that_are_no_options_exit_with_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2
    assert "error:" in capsys.readouterr().err


def test_a_word_after_a_double_dash_is_no_option() -> None:
    options = make_parser("explain").parse_args(["--support", "birds", "--", "-q.jpg"])
    assert options.queries == [Path("-q.jpg")]


def test_a_file_is_imported_before_the_command_is_read(
    tmp_path: Path, fresh_modules: None, capsys: pytest.CaptureFixture[str]
) -> None:
    plugin = tmp_path / "my_plugin_of_main.py"
    plugin.write_text("print('imported')\n")
    for _ in range(2):
        with pytest.raises(SystemExit):
            main(["--plugin", str(plugin), "demo", "--help"])
        printed = capsys.readouterr().out
        assert printed.replace("imported\n", "").startswith("usage: captum-fam demo")
    assert sys.modules["my_plugin_of_main"].__file__ == str(plugin)


def test_a_module_is_imported_by_its_name(
    tmp_path: Path, fresh_modules: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "my_package_of_main.py").write_text("print('by name')\n")
    with pytest.raises(SystemExit):
        main(["--plugin", "my_package_of_main", "demo", "--help"])
    assert capsys.readouterr().out.startswith("by name\nusage: captum-fam demo")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("gone_plugin.py", None, "FileNotFoundError"),
        ("no_such_module_of_main", None, "No module named 'no_such_module_of_main'"),
        ("wrong_plugin.py", "1 / 0\n", "ZeroDivisionError: division by zero"),
        ("pathlib.py", "", "pathlib is imported already; give the file another name"),
        ("sched.py", "", "sched is installed, and others import it; give the file another name"),
    ],
)
def test_a_plugin_that_cannot_be_imported_is_named(
    name: str,
    content: str | None,
    message: str,
    tmp_path: Path,
    fresh_modules: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    if content is not None:
        Path(name).write_text(content)
    assert main(["--plugin", name, "demo"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"captum-fam: error: --plugin {name}: ")
    assert message in error
    assert name.removesuffix(".py") not in sys.modules or name == "pathlib.py"


def run_with(monkeypatch: pytest.MonkeyPatch, run: Callable[..., object], *words: str) -> int:
    """Run the command ``demo`` with another function in its place."""

    def add_options(parser: ArgumentParser) -> None:
        parser.set_defaults(run=run)

    monkeypatch.setattr("captum_fam.cli.main.import_module", lambda _: SimpleNamespace(add_options=add_options))
    return main([*words, "demo"])


def raising(error: BaseException) -> Callable[..., object]:
    def run(_: object) -> object:
        raise error

    return run


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (ValueError("wrong"), 2, "captum-fam: error: wrong\n"),
        (FileNotFoundError(2, "No such file", "x"), 2, "captum-fam: error: [Errno 2] No such file: 'x'\n"),
        (MemoryError("Unable to allocate 9 TiB"), 2, "captum-fam: error: out of memory (Unable to allocate 9 TiB)\n"),
        (KeyboardInterrupt(), 130, "captum-fam: interrupted\n"),
    ],
)
def test_an_expected_end_is_one_line_and_a_code(
    error: BaseException,
    code: int,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run_with(monkeypatch, raising(error)) == code
    assert capsys.readouterr().err == message


def test_a_fault_of_the_program_shows_where_and_has_a_code_of_its_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_with(monkeypatch, raising(KeyError("unit"))) == 70
    error = capsys.readouterr().err
    assert error.startswith("Traceback")
    assert "captum-fam: error: KeyError, which captum-fam does not expect" in error.splitlines()[-1]
    with pytest.raises(KeyError):
        run_with(monkeypatch, raising(KeyError("unit")), "--traceback")


def test_a_package_that_does_not_fit_together_is_a_fault_of_the_program(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(_: object) -> object:
        from captum_fam.cli.ranges import no_such_range  # type: ignore[attr-defined]

        return no_such_range

    assert run_with(monkeypatch, run) == 70
    error = capsys.readouterr().err
    assert error.startswith("Traceback")
    assert "cannot import name 'no_such_range' from 'captum_fam.cli.ranges'" in error
    assert run_with(monkeypatch, lambda _: import_module("captum_fam.no_such_room")) == 70


def test_an_extra_that_is_missing_is_no_fault_of_the_program(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_with(monkeypatch, lambda _: need("no_such_package", extra="eval", purpose="the table")) == 2
    assert 'the table needs no_such_package: pip install "captum-fam[eval]"' in capsys.readouterr().err


def test_code_of_a_user_that_imports_what_is_not_there_is_no_fault_of_the_program(
    tmp_path: Path, fresh_modules: None, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "old_plugin_of_main.py").write_text("from captum_fam.cli.ranges import no_such_range\n")
    assert main(["--plugin", str(tmp_path / "old_plugin_of_main.py"), "demo"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "cannot import name 'no_such_range'" in error


@pytest.mark.parametrize("number", ["-1.1", "-1", "-.5", "-2e-3", "-7."])
def test_a_negative_number_is_a_value(number: str) -> None:
    options = make_parser("explain").parse_args(["q.jpg", "--support", "w.jpg", "--threshold", number])
    assert options.threshold == float(number)


@pytest.mark.parametrize("number", ["-inf", "inf", "nan", "-nan", "two"])
def test_what_is_no_finite_number_is_named(number: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        make_parser("report").parse_args(["pairs", "pairs.csv", "--threshold", number])
    assert f"argument --threshold: expected a number, got '{number}'" in capsys.readouterr().err


def test_sigterm_ends_as_ctrl_c_does(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    cleaned = []

    def run(_: object) -> object:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except KeyboardInterrupt:
            cleaned.append(True)
            raise
        return 0

    before = signal.getsignal(signal.SIGTERM)
    assert run_with(monkeypatch, run) == 143
    assert cleaned
    assert capsys.readouterr().err == "captum-fam: ended by SIGTERM\n"
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(
    ("words", "closest"),
    [
        (["explan"], "explain"),
        (["evaluate", "few-shit"], "few-shot"),
        (["demo", "--sed", "3"], "--seed"),
        (["evaluate", "few-shot", "--model", "demo", "--data", "scenes", "--episode", "3"], "--episodes"),
        (["evaluate", "few-shot", "--model", "demo", "--data", "scenes", "--foil", "runnerup"], "runner-up"),
    ],
)
def test_a_wrong_word_gets_one_line_with_the_closest_word(
    words: list[str], closest: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"; did you mean {closest}?" in error


def test_an_option_of_another_command_is_said_to_be_one(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["evaluate", "mosaic", "--model", "demo", "--data", "scenes", "--episodes", "3"])
    assert "unrecognized arguments: --episodes 3; --episodes is an option of few-shot (" in capsys.readouterr().err
