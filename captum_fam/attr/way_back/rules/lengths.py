r"""Lengths, deviations, variances, inverses and steps.

A length is homogeneous of degree one, :math:`x \cdot \nabla \|x\| = \|x\|` (Euler's theorem). As a *feature*, a length
therefore keeps its own gradient. As a *factor* of a product or quotient, a length is a scale, and the rule of the
product holds it (:mod:`captum_fam.attr.way_back.rules.products`).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from captum_fam.attr.way_back.call import Call, share


def hold(call: Call) -> Any:
    """An inverse or a step: the whole result is held, as a constant of this pass."""
    return call.value()


def length(call: Call) -> Any:
    """A norm or a standard deviation: held as a scale by a product; as a feature it keeps its gradient."""
    return call()


def variance(call: Call) -> Tensor:
    r"""``var``: as :func:`length`, with half of the gradient, because :math:`x \cdot \nabla v = 2 v`."""
    x = call.args[0]
    call.replace(x, share(x, 2))
    result: Tensor = call()
    return result


def variance_and_mean(call: Call) -> tuple[Tensor, Tensor]:
    """``var_mean``: the variance as in :func:`variance`, and the mean with its own gradient."""
    _, mean = call()
    x = call.args[0]
    call.replace(x, share(x, 2))
    return call()[0], mean
