"""The table of all functions of torch that follow a rule on the way back.

:data:`RULES` maps the name of a function (``"gelu"`` for ``torch.nn.functional.gelu``) to the rule that runs in its
place. A rule replaces the gradient of the function or notes constants that the function adds. Functions outside the
table keep their own gradient, which is the first order only: the part of the score that this misses is the rest of the
account. :func:`register_rule` adds a function.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from captum_fam.attr.way_back.call import Gate, Rule
from captum_fam.attr.way_back.rules.activations import (
    clamp,
    extremum,
    gate,
    gated_half,
    hold_quotient,
    power,
    relu,
)
from captum_fam.attr.way_back.rules.constants import (
    addition,
    choice,
    convolution,
    filling,
    joining,
    linear_layer,
    padding,
    reversed_subtraction,
    stacking,
    subtraction,
    sum_and_product,
)
from captum_fam.attr.way_back.rules.lengths import hold, length, variance, variance_and_mean
from captum_fam.attr.way_back.rules.normalizations import batch_norm, group_norm, instance_norm, layer_norm, rms_norm
from captum_fam.attr.way_back.rules.products import attention, cosine, product, quotient_of_two


@dataclass(frozen=True)
class Entry:
    """The rule of one function of torch.

    Attributes:
        rule: runs in place of the function.
        gate: the gate level of the result, as a factor of a product. Default: None, concluded from the levels of the
            arguments.
        acts_in_place: whether the rule can run an in-place form such as ``relu_`` directly. For all other rules, the
            result of the plain form is copied into the tensor that the in-place form changes. Default: False.
    """

    rule: Rule
    gate: Gate | None = None
    acts_in_place: bool = False


def _entries(rule: Rule, names: str, gate: Gate | None = None, acts_in_place: bool = False) -> dict[str, Entry]:
    """One entry for several functions; the names are separated by spaces."""
    return dict.fromkeys(names.split(), Entry(rule, gate, acts_in_place))


RULES: dict[str, Entry] = {
    # Scales: lengths and deviations.
    **_entries(
        length,
        "norm linalg_norm linalg_vector_norm linalg_matrix_norm frobenius_norm nuclear_norm std std_mean",
        Gate.SCALE,
    ),
    **_entries(variance, "var", Gate.SCALE),
    **_entries(variance_and_mean, "var_mean"),
    **_entries(hold, "rsqrt reciprocal"),
    # Steps: the slope of a step is zero, so that a factor that is a step is a scale.
    **_entries(hold, "sign sgn round floor ceil trunc heaviside"),
    **_entries(layer_norm, "layer_norm"),
    **_entries(rms_norm, "rms_norm"),
    **_entries(group_norm, "group_norm"),
    **_entries(instance_norm, "instance_norm"),
    **_entries(batch_norm, "batch_norm"),
    # Gates and attention weights.
    **_entries(gate, "sigmoid hardsigmoid softmax softmin special_expit", Gate.WEIGHT, acts_in_place=True),
    **_entries(attention, "scaled_dot_product_attention"),
    **_entries(gated_half, "glu"),
    # Elementwise functions that are zero at zero.
    **_entries(relu, "relu leaky_relu rrelu prelu", Gate.ACTIVATION, acts_in_place=True),
    **_entries(
        hold_quotient, "gelu silu mish hardswish elu selu celu tanhshrink hardshrink softshrink", Gate.ACTIVATION
    ),
    **_entries(hold_quotient, "tanh softsign erf", Gate.BOUNDED),
    **_entries(hold_quotient, "square sqrt"),
    **_entries(power, "pow float_power"),
    **_entries(clamp, "clamp clip clamp_min clamp_max hardtanh relu6", Gate.BOUNDED),
    **_entries(extremum, "maximum minimum fmax fmin"),
    # Products and divisions of what depends on the layer with itself.
    **_entries(
        product,
        "mul multiply matmul bmm mm mv dot inner outer ger einsum tensordot bilinear chain_matmul kron",
        acts_in_place=True,
    ),
    **_entries(quotient_of_two, "div divide true_divide", acts_in_place=True),
    **_entries(cosine, "cosine_similarity"),
    # Constants that are added.
    **_entries(linear_layer, "linear"),
    **_entries(convolution, "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d"),
    **_entries(sum_and_product, "addmm baddbmm addbmm addmv addr addcmul", acts_in_place=True),
    **_entries(addition, "add", acts_in_place=True),
    **_entries(subtraction, "sub subtract", acts_in_place=True),
    **_entries(reversed_subtraction, "rsub"),
    **_entries(joining, "cat concat concatenate"),
    **_entries(stacking, "stack"),
    **_entries(choice, "where"),
    **_entries(filling, "masked_fill", acts_in_place=True),
    **_entries(padding, "pad"),
}


def register_rule(function: Callable[..., Any] | str, rule: Rule, gate: Gate | None = None) -> None:
    """Add a rule for a function of torch, which runs in place of the function between the layer and the embedding.

    A rule that is registered for the function already is replaced.

    Args:
        function: a function of torch, or its name. The in-place form and the method of the same name follow the rule
            too.
        rule: from a :class:`~captum_fam.attr.way_back.Call` to the result of the function.
        gate: the gate level of the result as a factor of a product; the factor of the higher level is held. Default:
            None, concluded from the levels of the arguments.

    Raises:
        TypeError: if ``rule`` is not callable.

    Example:
        >>> register_rule(torch.erf, hold_quotient, Gate.BOUNDED)  # erf(x) = x * (erf(x) / x), the quotient held
    """
    if not callable(rule):
        raise TypeError(f"rule must be callable, got {type(rule).__name__}")
    RULES[function if isinstance(function, str) else function.__name__] = Entry(rule, gate)


def find_rule(name: str) -> Entry | None:
    """The entry of a function of torch by name; None for a function that keeps its own gradient.

    Example:
        >>> find_rule("softmax").gate, find_rule("conv_tbc")
        (<Gate.WEIGHT: 3>, None)
    """
    return RULES.get(name)
