"""Contributions and linear weights that have cancelled to rounding."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from captum_fam import functional as F


def drop_rounding(
    values: Tensor, query: Tensor, *, are_weights: bool, bound: Tensor, noise: Callable[[], Tensor]
) -> Tensor:
    """Contributions, or linear weights, that have cancelled to rounding become exactly zero.

    A row becomes zero where its largest contribution is within the largest noise: what else the row holds is smaller
    still, while small values beside large ones do no harm.

    Args:
        values: contributions c, or weights u with ``c = query * u``, ``(B, J)``.
        query: Z, ``(B, J)``.
        are_weights: the values are weights; a row of weights has to be within the noise of the weights as well.
        bound: of the noise in c, ``(B, 1)``; rows above it need no closer look.
        noise: called for how far rounding can have moved each u, ``(B, J)``.

    Returns:
        ``(B, J)``; the values themselves where no row is near the bound.

    Example:
        >>> query, values = torch.ones(2, 2), torch.tensor([[1e-9, -3e-9], [0.5, 1e-9]])
        >>> noise = torch.full((2, 2), 1e-8)
        >>> drop_rounding(values, query, are_weights=False, bound=noise[:, :1], noise=lambda: noise)
        tensor([[0.0000e+00, 0.0000e+00],
                [5.0000e-01, 1.0000e-09]])
    """
    largest = (query * values if are_weights else values).abs().amax(1, keepdim=True)
    # The noise costs as much as the values: it is computed only where a row is small, but not zero already.
    if not ((largest <= bound) & values.any(1, keepdim=True)).any():
        return values
    moved = noise()
    lost = largest <= (query.abs() * moved).amax(1, keepdim=True)
    if are_weights:
        # A weight can be large where the query is zero; its contribution does not show that.
        lost = lost & (values.abs().amax(1, keepdim=True) <= moved.amax(1, keepdim=True))
    return values.masked_fill(lost, 0)


def drop_rounding_of_sum(values: Tensor, magnitude: Tensor, query: Tensor, *, are_weights: bool, count: int) -> Tensor:
    """:func:`drop_rounding` for a sum over the supports whose terms were gone through one by one.

    Args:
        values: contributions c, or weights u with ``c = query * u``, ``(B, J)``.
        magnitude: the sum of the magnitudes of the terms of each u, ``(B, J)``.
        query: Z, ``(B, J)``; ones where the magnitude is that of the terms of c.
        are_weights: the values are weights.
        count: of terms, the number of supports.

    Returns:
        ``(B, J)``.

    Example:
        >>> first, second = torch.tensor([[0.1, 0.7]]), torch.tensor([[0.3, 0.4]])
        >>> total, magnitude = first + second - first - second, 2 * (first + second)
        >>> total, drop_rounding_of_sum(total, magnitude, torch.ones(1, 2), are_weights=False, count=4)
        (tensor([[0.0000e+00, 2.9802e-08]]), tensor([[0., 0.]]))
    """
    noise = F.rounding_of_supports(count, query.dtype) * magnitude
    bound = (query.abs() * noise).amax(1, keepdim=True)
    return drop_rounding(values, query, are_weights=are_weights, bound=bound, noise=lambda: noise)
