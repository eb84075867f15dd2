"""Setting contributions and linear weights to zero that are only rounding errors of terms that cancel."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from captum_fam import functional as F


def drop_rounding(
    values: Tensor, query: Tensor, *, are_weights: bool, bound: Tensor, noise: Callable[[], Tensor]
) -> Tensor:
    """Set rows of contributions, or of linear weights, to zero if they hold only rounding errors.

    A row becomes zero if its largest contribution is no larger than its largest rounding error. A row with larger
    contributions stays as it is, because small errors beside large values do no harm.

    Args:
        values: contributions c, or weights u with ``c = query * u``, ``(B, J)``.
        query: Z, ``(B, J)``.
        are_weights: whether the values are weights u. A row of weights becomes zero only if the weights, too, are no
            larger than their rounding errors.
        bound: an upper bound of the rounding error of c, cheap to compute, ``(B, 1)``. Only rows within the bound are
            compared with ``noise``.
        noise: gives the largest rounding error of each u, ``(B, J)``; called only if a row is within the bound.

    Returns:
        ``(B, J)``; ``values`` itself if no row is within the bound.

    Example:
        >>> query, values = torch.ones(2, 2), torch.tensor([[1e-9, -3e-9], [0.5, 1e-9]])
        >>> noise = torch.full((2, 2), 1e-8)
        >>> drop_rounding(values, query, are_weights=False, bound=noise[:, :1], noise=lambda: noise)
        tensor([[0.0000e+00, 0.0000e+00],
                [5.0000e-01, 1.0000e-09]])
    """
    largest = (query * values if are_weights else values).abs().amax(1, keepdim=True)
    # The noise costs as much to compute as the values, so it is computed only if some row is small and not zero yet.
    if not ((largest <= bound) & values.any(1, keepdim=True)).any():
        return values
    error = noise()
    is_noise = largest <= (query.abs() * error).amax(1, keepdim=True)
    if are_weights:
        # Where the query is zero, a large weight has a small contribution: the weights themselves are compared too.
        is_noise = is_noise & (values.abs().amax(1, keepdim=True) <= error.amax(1, keepdim=True))
    return values.masked_fill(is_noise, 0)


def drop_rounding_of_sum(values: Tensor, magnitude: Tensor, query: Tensor, *, are_weights: bool, count: int) -> Tensor:
    """:func:`drop_rounding` for sums over the supports that were added up term by term.

    Args:
        values: contributions c, or weights u with ``c = query * u``, ``(B, J)``.
        magnitude: the sum of the magnitudes of the terms of each u, ``(B, J)``.
        query: Z, ``(B, J)``; a tensor of ones if ``magnitude`` belongs to the terms of c instead of u.
        are_weights: whether the values are weights u.
        count: the number of terms, which is the number of supports.

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
