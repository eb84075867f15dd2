"""Counting the passes through a model, and embedding a support."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from captum_fam import SupportSet


@contextmanager
def counted(net: nn.Module) -> Iterator[list[int]]:
    """The batch sizes of the passes through ``net``."""
    passes: list[int] = []
    handle = net.register_forward_pre_hook(lambda _, inputs: passes.append(len(inputs[0])))
    yield passes
    handle.remove()


def embedded(support: SupportSet, forward_func: Callable[..., Any], args: Any = None) -> Tensor:
    """The embeddings ``(K, J)`` of a support under a model."""
    return support.embed(forward_func, args).embeddings()
