"""Printing goes on whatever console or pipe it goes to."""

from __future__ import annotations

import io
import os
import subprocess
import sys

import pytest

from captum_fam.cli.console import ConsoleStream, console_streams, say

_NAME = "inv\udcff é 鳥"


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [
        ("ascii", r"inv\udcff \xe9 \u9ce5"),
        ("cp1252", r"inv\udcff é \u9ce5"),
        ("utf-8", r"inv\udcff é 鳥"),
    ],
)
def test_what_a_console_cannot_show_is_an_escape(encoding: str, shown: str) -> None:
    buffer = io.BytesIO()
    stream = ConsoleStream(io.TextIOWrapper(buffer, encoding=encoding))
    print(_NAME, file=stream, flush=True)
    assert buffer.getvalue().decode(encoding) == shown + "\n"
    assert not stream.isatty()
    assert stream.encoding == encoding


def test_a_process_without_output_prints_into_nothing() -> None:
    print("x", file=ConsoleStream(None), flush=True)
    assert not ConsoleStream(None).isatty()


_PRINTS = """
import sys
from captum_fam.cli.console import console_streams
with console_streams():
    for number in range(100_000):
        print(number)
        print(number, file=sys.stderr)
open(sys.argv[1], "w").write("done")
"""


@pytest.mark.parametrize("buffering", ["", "1"])
def test_the_work_goes_on_when_the_reader_has_gone(buffering: str, tmp_path: os.PathLike[str]) -> None:
    done = os.path.join(tmp_path, "done")
    process = subprocess.Popen(
        [sys.executable, "-c", _PRINTS, done],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "PYTHONUNBUFFERED": buffering},
    )
    assert process.stdout is not None
    assert process.stdout.read(1) == b"0"
    process.stdout.close()
    assert process.wait() == 0
    assert os.path.exists(done)


def test_streams_are_as_before_after_the_context() -> None:
    before = sys.stdout, sys.stderr
    with console_streams():
        assert isinstance(sys.stdout, ConsoleStream)
    assert (sys.stdout, sys.stderr) == before


def test_a_message_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    say("error", ValueError("layer \x1b[2J\nof two lines"))
    assert capsys.readouterr().err == "captum-fam: error: layer \\x1b[2J\nof two lines\n"
