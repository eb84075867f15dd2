"""Progress bars, where somebody sees them."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from tqdm import TqdmWarning

with warnings.catch_warnings():
    # A notebook without ipywidgets has bars of text.
    warnings.simplefilter("ignore", TqdmWarning)
    from tqdm.auto import tqdm

__all__ = ["hidden_bars", "progress_bar", "shows_bars", "tqdm"]

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


def progress_bar(*arguments: Any, shown: bool = True, **options: Any) -> tqdm[Any]:
    """A progress bar, which is drawn only where somebody sees it.

    Args:
        arguments: as for tqdm.
        shown: whether the bar is wanted at all. Default: True.
        options: as for tqdm, except for ``disable``.

    Returns:
        The bar.

    Example:
        >>> [2 * one for one in progress_bar(range(3), shown=False)]
        [0, 2, 4]
    """
    return tqdm(*arguments, disable=not (shown and shows_bars()), **options)


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
