"""The view of the image that a thread is running, such as the image itself or its mirror image."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class _View(threading.local):
    index = 0


_VIEW = _View()


def current_view() -> int:
    """The number of the view that this thread is running; 0 for a model without views."""
    return _VIEW.index


@contextmanager
def running_view(index: int) -> Iterator[None]:
    """Set the number of the view that this thread runs, while the context lasts.

    Example:
        >>> with running_view(1):
        ...     current_view()
        1
    """
    before = _VIEW.index
    _VIEW.index = index
    try:
        yield
    finally:
        _VIEW.index = before
