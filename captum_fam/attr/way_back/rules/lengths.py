r"""Lengths, deviations, variances, and functions that have no slope.

A length grows in proportion to its vector, :math:`x \cdot \nabla \|x\| = \|x\|` (Euler's theorem for functions of
degree one), so that as a *feature* a length keeps its own gradient. As a *factor* the length is a scale, which the
product or quotient holds (:mod:`captum_fam.attr.way_back.rules.products`).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from captum_fam.attr.way_back.call import Call, share


def hold(call: Call) -> Any:
    """An inverse or a step: the result is a constant of this pass."""
    return call.value()


def length(call: Call) -> Any:
    """A norm or a standard deviation: held where it scales; a feature, as of statistics pooling, where it does not."""
    return call()


def variance(call: Call) -> Tensor:
    r"""As :func:`length`; a variance grows with the square, :math:`x \cdot \nabla v = 2 v`, and one factor is held."""
    x = call.args[0]
    call.replace(x, share(x, 2))
    result: Tensor = call()
    return result


def variance_and_mean(call: Call) -> tuple[Tensor, Tensor]:
    """``var_mean``: the variance as in :func:`variance`, and the mean, which is linear."""
    _, mean = call()
    x = call.args[0]
    call.replace(x, share(x, 2))
    return call()[0], mean
