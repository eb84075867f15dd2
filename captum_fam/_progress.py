"""Progress bars, where somebody sees them."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from tqdm import TqdmWarning

with warnings.catch_warnings():
    # A notebook without ipywidgets has bars of text.
    warnings.simplefilter("ignore", TqdmWarning)
    from tqdm.auto import tqdm

__all__ = ["hidden_bars", "shows_bars", "tqdm"]

_are_hidden = ContextVar("are_hidden", default=False)


def shows_bars() -> bool:
    """Whether a progress bar is drawn: in a terminal and in a notebook, not in a pipe, a log or :func:`hidden_bars`.

    Example:
        >>> isinstance(shows_bars(), bool)
        True
    """
    is_notebook = any(kind.__module__ == "tqdm.notebook" for kind in tqdm.__mro__)
    is_seen = is_notebook or (sys.stderr is not None and sys.stderr.isatty())
    return is_seen and not _are_hidden.get()


@contextmanager
def hidden_bars() -> Iterator[None]:
    """Hide the progress bars inside, such as those of functions that have no argument for it.

    Example:
        >>> with hidden_bars():
        ...     shows_bars()
        False
    """
    token = _are_hidden.set(True)
    try:
        yield
    finally:
        _are_hidden.reset(token)
