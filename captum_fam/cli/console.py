"""Printing that raises no error: on a console of any encoding, and into a pipe whose reader has ended."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast

from captum_fam._text import printable

_LONGEST_LINE = 5000  # characters of a message


class ConsoleStream:
    r"""A stream of text that takes any text.

    Characters that the console cannot show are written as escapes. When the reader of a pipe has ended, as ``head``
    does after its lines, all further text is dropped.

    Args:
        stream: standard output or standard error; None for a process that has none.

    Example:
        >>> import io
        >>> buffer = io.BytesIO()
        >>> stream = ConsoleStream(io.TextIOWrapper(buffer, encoding="ascii"))
        >>> _ = stream.write("bird \udcff é")
        >>> stream.flush()
        >>> buffer.getvalue()
        b'bird \\udcff \\xe9'
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def isatty(self) -> bool:
        """Whether the stream is a terminal."""
        return self._stream is not None and self._stream.isatty()

    def write(self, text: str) -> int:
        """Write a text.

        Args:
            text: any text.

        Returns:
            The number of characters of the text.
        """
        if self._stream is not None:
            encoding = self._stream.encoding or "utf-8"
            try:
                self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
            except BrokenPipeError:
                self._drop()
        return len(text)

    def flush(self) -> None:
        """Write the text in the buffer of the stream."""
        if self._stream is not None:
            try:
                self._stream.flush()
            except BrokenPipeError:
                self._drop()

    def _drop(self) -> None:
        """Send all further text to the null device, also the rest of the buffer, which Python writes at its end."""
        assert self._stream is not None
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, self._stream.fileno())
        os.close(null)


@contextmanager
def console_streams() -> Iterator[None]:
    """A context in which standard output and standard error take any text, see :class:`ConsoleStream`.

    Example:
        >>> with console_streams():
        ...     print("done")
        done
    """
    streams = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (cast(TextIO, ConsoleStream(stream)) for stream in streams)
    try:
        yield
    finally:
        with suppress(OSError):  # a full disk, which the last print has reported
            sys.stdout.flush()
            sys.stderr.flush()
        sys.stdout, sys.stderr = streams


def say(kind: str, text: object) -> None:
    """Print a line to standard error, with control characters as escapes.

    Args:
        kind: what the line is, such as ``"error"`` or ``"note"``.
        text: the text, or an exception. Its line breaks stay.

    Example:
        >>> say("note", "random weights")
    """
    lines = [printable(line, limit=_LONGEST_LINE) for line in str(text).split("\n")]
    print(f"captum-fam: {kind}: " + "\n".join(lines), file=sys.stderr)
