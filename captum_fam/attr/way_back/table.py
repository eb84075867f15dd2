"""The table of all functions that do not keep their own gradient on the way back, or that add a constant.

:data:`RULES` maps the name of a torch function (``"gelu"`` for ``torch.nn.functional.gelu``) to the rule that is
followed in its place. Functions outside the table keep their own gradient, to first order: what that leaves unexplained
is the rest of the account. :func:`register_rule` adds a function.
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
    """What is known of one function of torch.

    Attributes:
        rule: followed in place of the function.
        gate: level of the function's result as a factor of a product; None: the level of its arguments.
        acts_in_place: whether the rule may call the in-place form of the function, whose own gradient is the held one.
            The results of all other rules are copied into the tensor that an in-place form changes.
    """

    rule: Rule
    gate: Gate | None = None
    acts_in_place: bool = False


def _entries(rule: Rule, names: str, gate: Gate | None = None, acts_in_place: bool = False) -> dict[str, Entry]:
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
    # Steps: their slope is zero, so that a product with them is a product with a scale.
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
    """Follow ``rule`` wherever a function of torch is called between the explained layer and the embedding.

    Args:
        function: of torch, or its name. The in-place form and the method of the same name follow the rule too.
        rule: from a :class:`~captum_fam.attr.way_back.Call` to the result of the function.
        gate: level of the result as a factor of a product, which says which of two factors is held; None: the level
            of the function's arguments.

    Raises:
        TypeError: if ``rule`` is not callable.

    Example:
        >>> register_rule(torch.erf, hold_quotient, Gate.BOUNDED)  # erf(x) = x * (erf(x) / x), the quotient held
    """
    if not callable(rule):
        raise TypeError(f"rule must be callable, got {type(rule).__name__}")
    RULES[function if isinstance(function, str) else function.__name__] = Entry(rule, gate)


def find_rule(name: str) -> Entry | None:
    """The entry of a function of torch by name; ``None`` where the function keeps its own gradient."""
    return RULES.get(name)
