"""A request to end (SIGTERM) that ends a command as Ctrl-C does: files are closed, and what is computed is stored."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Terminated(KeyboardInterrupt):
    """A request to end, from ``kill``, a batch system or torchrun.

    Example:
        >>> issubclass(Terminated, KeyboardInterrupt)
        True
    """


@contextmanager
def termination_as_exception() -> Iterator[None]:
    """A context in which SIGTERM raises :class:`Terminated` in the main thread.

    Outside the main thread, in which Python handles no signals, the context changes nothing.

    Example:
        >>> with termination_as_exception():
        ...     try:
        ...         os.kill(os.getpid(), signal.SIGTERM)
        ...     except Terminated:
        ...         print("ended")
        ended
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    process = os.getpid()

    def end(number: int, _: FrameType | None) -> None:
        if os.getpid() == process:
            raise Terminated
        # A worker process that was forked from this one ends as it would have ended without this handler.
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
