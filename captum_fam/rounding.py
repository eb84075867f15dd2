"""Contributions and weights that have cancelled to rounding."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor


def drop_rounding(
    values: Tensor, query: Tensor, *, are_weights: bool, bound: Tensor, noise: Callable[[], Tensor]
) -> Tensor:
    """Contributions, or linear weights, that have cancelled to rounding become exactly zero.

    A row does where its largest contribution is within the largest noise: what else it holds is smaller still, while
    small values beside large ones do no harm.

    Args:
        values: contributions c, or weights u with ``c = query * u``, ``(B, J)``.
        query: ``(B, J)``.
        are_weights: they are weights, and are to be within their own noise as well.
        bound: of the noise in c, ``(B, 1)``; rows above it need no closer look.
        noise: called for how far rounding can have moved each u, ``(B, J)``.
    """
    largest = (query * values if are_weights else values).abs().amax(1, keepdim=True)
    if not ((largest <= bound) & values.any(1, keepdim=True)).any():
        return values
    moved = noise()
    lost = largest <= (query.abs() * moved).amax(1, keepdim=True)
    if are_weights:
        lost = lost & (values.abs().amax(1, keepdim=True) <= moved.amax(1, keepdim=True))
    return values.masked_fill(lost, 0)
