"""Progress bars, where somebody sees them."""

from __future__ import annotations

import sys

from tqdm.auto import tqdm


def shows_bars() -> bool:
    """Whether a progress bar can be drawn: in a terminal and in a notebook, not in a pipe or a log.

    Example:
        >>> isinstance(shows_bars(), bool)
        True
    """
    is_notebook = any(kind.__module__ == "tqdm.notebook" for kind in tqdm.__mro__)
    return is_notebook or (sys.stderr is not None and sys.stderr.isatty())
