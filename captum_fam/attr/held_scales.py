r"""What is held constant on the way back from the embedding to a layer, in one table.

A map adds up to the score only where the network behind the layer is linear up to biases. Every *scale* is therefore
held at its value in this pass: an L2 norm, the deviation of a normalization layer, an attention weight, the gate of an
activation function :math:`\phi(x) = x \cdot (\phi(x) / x)`. Ali et al., "XAI for Transformers: Better Explanations
through Conservative Propagation", ICML 2022, do so for LayerNorm and attention; here it is the rule for all scales.

:data:`RULES` maps the name of a torch function (``"gelu"`` for ``torch.nn.functional.gelu``) to the rule that is
followed in its place. A rule takes a :class:`Call` and gives the value that the function has, with the gradient of the
held form. What adds a constant (a bias, a shift, a class token) says so with :meth:`Call.add_constant`, so that the
constant has its share of the score. Functions that are not in the table keep their own gradient, to first order: what
that leaves unexplained is the rest of the account.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor

Pull = Callable[[Tensor], Tensor]


class Gate(IntEnum):
    """Which factor of a product is held: the one of the higher level. Equal factors share the product in halves."""

    NONE = 0
    ACTIVATION = 1  # SwiGLU: the activated half is the gate of the other half
    BOUNDED = 2  # tanh, ReLU6: x * relu6(x + 3) / 6 and x * (1 + tanh(...)) / 2 are activations written by hand
    WEIGHT = 3  # sigmoid and softmax: weights of what they multiply
    SCALE = 4  # lengths and deviations


@dataclass
class Call:
    """One call of a torch function, some of whose tensors depend on the explained layer.

    Attributes:
        function: called as ``function(*args, **kwargs)``.
        args: its positional arguments.
        kwargs: its keyword arguments.
        gate_of: the gate level of a tensor.
        add_constant: ``add_constant(result, constant, axis)`` notes that ``constant`` was added to ``result`` and
            depends on nothing of the layer: a vector along dimension ``axis``, or with ``axis=None`` a tensor or number
            that broadcasts. ``part=(dimension, start, length)`` names the slice of the result that it was added to;
            ``source``, where that is another tensor, what the constant was made of.
    """

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    gate_of: Callable[[object], Gate]
    add_constant: Callable[..., None]

    def __call__(self) -> Any:
        """What the function itself gives, with its own gradient."""
        return self.function(*self.args, **self.kwargs)

    def value(self) -> Any:
        """What the function gives, without a gradient."""
        with torch.no_grad():
            return self()

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        """An argument, by position or by name."""
        return self.args[position] if len(self.args) > position else self.kwargs.get(name, default)

    def replace(self, old: object, new: object) -> None:
        """Put ``new`` in the place of the argument ``old``, also within lists."""

        def exchange(value: Any) -> Any:
            if isinstance(value, list | tuple):
                return type(value)([exchange(item) for item in value])
            return new if value is old else value

        self.args = tuple([exchange(value) for value in self.args])
        self.kwargs = {name: exchange(value) for name, value in self.kwargs.items()}


Rule = Callable[[Call], Any]


class _Held(torch.autograd.Function):
    """A function with its own value and a linear way back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, compute: Callable[[Tensor], tuple[Tensor, Pull]]) -> Tensor:
        value, ctx.pull = compute(x.detach())
        return value

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return ctx.pull(gradients[0]), None


def linear(x: Tensor, compute: Callable[[Tensor], tuple[Tensor, Pull]]) -> Tensor:
    """A result whose gradient is that of a linear map.

    Args:
        x: the tensor that depends on the layer.
        compute: from ``x``, detached, to the result (a new tensor) and the function that takes the gradient on the
            result to the gradient on ``x``.
    """
    result: Tensor = _Held.apply(x, compute)
    return result


def register_rule(function: Callable[..., Any] | str, rule: Rule) -> None:
    """Follow ``rule`` wherever a function of torch is called between the explained layer and the embedding.

    Args:
        function: of torch, or its name. The in-place form and the method of the same name follow the rule too.
        rule: from a :class:`Call` to the result of the function.

    Raises:
        TypeError: if ``rule`` is not callable.

    Example:
        >>> register_rule(torch.erf, hold_quotient)  # erf(x) = x * (erf(x) / x), the quotient held
    """
    if not callable(rule):
        raise TypeError(f"rule must be callable, got {type(rule).__name__}")
    RULES[function if isinstance(function, str) else function.__name__] = rule


def find_rule(name: str) -> Rule | None:
    """The rule for a function of torch by name; ``None`` where it keeps its own gradient."""
    return RULES.get(name)


# Rules


def hold(call: Call) -> Any:
    """An inverse or a step: the result is a constant of this pass."""
    return call.value()


def length(call: Call) -> Any:
    """A norm or a standard deviation: held where it scales; a feature, as of statistics pooling, where it does not.

    It grows in proportion to its vector, so that its own gradient adds up to it.
    """
    return call()


def variance(call: Call) -> Tensor:
    """As :func:`length`; a variance grows with the square, of which one factor is held."""
    x = call.args[0]
    call.replace(x, _share(x, 2))
    result: Tensor = call()
    return result


def variance_and_mean(call: Call) -> tuple[Tensor, Tensor]:
    """``var_mean``: the mean is linear."""
    _, mean = call()
    x = call.args[0]
    call.replace(x, _share(x, 2))
    return call()[0], mean


def _share(x: Tensor, count: int) -> Tensor:
    """The tensor as one of several equal factors."""
    return linear(x, lambda value: (value.clone(), lambda gradient: gradient / count))


def hold_quotient(call: Call) -> Tensor:
    """An elementwise function that is zero at zero: x * (phi(x) / x), the quotient held."""
    x = call.args[0]
    return linear(x, lambda value: _quotient(call, value))


def _quotient(call: Call, x: Tensor) -> tuple[Tensor, Pull]:
    result = call.function(x, *call.args[1:], **call.kwargs)
    # At zero the quotient is the slope. No share of a score hangs on it, but FAM sums the gradients themselves.
    near = x.new_full((), 2.0**-12)
    slope = call.function(near, *call.args[1:], **call.kwargs) / near if x.numel() else near
    quotient = torch.where(x == 0, slope, result / x)
    return result, lambda gradient: gradient * quotient


def relu(call: Call) -> Any:
    """The gradient of a ReLU is its quotient already, also where its slope differs by sign."""
    return call()


def gate(call: Call) -> Any:
    """A sigmoid or softmax: held by the product that it weighs; its own gradient where there is no such product."""
    return call()


def power(call: Call) -> Tensor:
    """A power of the layer: a quotient for positive exponents, a scale for negative ones."""
    base, exponent = call.args[0], call.argument(1, "exponent")
    if not (isinstance(base, Tensor) and base.requires_grad):
        return hold(call)
    if bool((torch.as_tensor(exponent) < 0).any()):
        return hold(call)
    if isinstance(exponent, Tensor) and exponent.requires_grad:
        call.replace(exponent, exponent.detach())
    if isinstance(exponent, Tensor) and exponent.dim() > base.dim():
        return call()
    return hold_quotient(call)


def clamp(call: Call) -> Tensor:
    """A quotient where zero stays zero, as in ReLU6; else the bound is a constant where it is met."""
    x = call.args[0]
    if bool((call.function(torch.zeros_like(x[..., :1]), *call.args[1:], **call.kwargs) == 0).all()):
        return hold_quotient(call)
    result: Tensor = call()
    call.add_constant(result, torch.where(result == x, 0.0, result.detach()))
    return result


def extremum(call: Call) -> Tensor:
    """``maximum`` and ``minimum``: the constants that are chosen are added."""
    result: Tensor = call()
    for value in call.args[:2]:
        if isinstance(value, Tensor) and not value.requires_grad:
            call.add_constant(result, torch.where(result == value, result.detach(), 0.0), source=value)
    return result


def product(call: Call) -> Any:
    """A product of tensors that both depend on the layer: the gate is held; else each has its half."""
    hold_gates(call, [*call.args, *call.kwargs.values()])
    return call()


def hold_gates(call: Call, factors: Sequence[Any]) -> None:
    """Hold the factors of the highest gate level; factors that are left share the gradient."""
    tensors = [t for f in factors for t in (f if isinstance(f, list | tuple) else [f]) if isinstance(t, Tensor)]
    dependent = [t for t in tensors if t.requires_grad]
    if len(dependent) < 2:
        return
    lowest = min(call.gate_of(t) for t in dependent)
    free = [t for t in dependent if call.gate_of(t) == lowest]
    for tensor in {id(t): t for t in dependent}.values():
        if call.gate_of(tensor) > lowest:
            call.replace(tensor, tensor.detach())
        elif len(free) > 1:
            call.replace(tensor, _share(tensor, len(free)))


def quotient_of_two(call: Call) -> Tensor:
    """A division holds its denominator."""
    denominator = call.argument(1, "other")
    if isinstance(denominator, Tensor) and denominator.requires_grad:
        call.replace(denominator, denominator.detach())
    result: Tensor = call()
    return result


def attention(call: Call) -> Any:
    """``scaled_dot_product_attention``: the weights, and so queries and keys, are held."""
    for name, position in (("query", 0), ("key", 1), ("attn_mask", 3)):
        value = call.argument(position, name)
        # Queries may be the values themselves; only their role as queries is held.
        if isinstance(value, Tensor) and len(call.args) > position:
            call.args = (*call.args[:position], value.detach(), *call.args[position + 1 :])
        elif isinstance(value, Tensor):
            call.kwargs = {**call.kwargs, name: value.detach()}
    return call()


def layer_norm(call: Call) -> Tensor:
    """The mean is linear, the deviation held, the shift a constant."""
    x, shape = call.args[0], call.argument(1, "normalized_shape")
    weight, bias = call.argument(2, "weight"), call.argument(3, "bias")
    eps = call.argument(4, "eps", 1e-5)
    dims = tuple(range(x.dim() - len(shape), x.dim()))

    def compute(value: Tensor) -> tuple[Tensor, Pull]:
        if torch.is_autocast_enabled(value.device.type):
            result = call.function(value, *call.args[1:], **call.kwargs)
            scale = (_wide(value).var(dims, correction=0, keepdim=True) + eps).rsqrt()
        else:  # the same value, and the deviation with it
            result, _, scale = torch.native_layer_norm(value, shape, weight, bias, eps)

        def pull(gradient: Tensor) -> Tensor:
            gradient = gradient if weight is None else gradient * weight
            scaled = gradient * scale
            return (scaled - scaled.mean(dims, keepdim=True)).to(x.dtype)

        return result, pull

    result = linear(x, compute)
    if bias is not None:
        call.add_constant(result, bias, -1 if len(shape) == 1 else None)
    return result


def rms_norm(call: Call) -> Tensor:
    """The root of the mean square is held."""
    x, shape = call.args[0], call.argument(1, "normalized_shape")
    weight, eps = call.argument(2, "weight"), call.argument(3, "eps")
    dims = tuple(range(x.dim() - len(shape), x.dim()))

    def compute(value: Tensor) -> tuple[Tensor, Pull]:
        result = call.function(value, *call.args[1:], **call.kwargs)
        wide = _wide(value)
        added = torch.finfo(wide.dtype).eps if eps is None else eps
        scale = (wide.square().mean(dims, keepdim=True) + added).rsqrt()
        return result, lambda gradient: (gradient * scale if weight is None else gradient * weight * scale).to(x.dtype)

    return linear(x, compute)


def group_norm(call: Call) -> Tensor:
    """As :func:`layer_norm`, over groups of channels and all positions."""
    x, groups = call.args[0], call.argument(1, "num_groups")
    return _grouped(
        call, x, groups, call.argument(2, "weight"), call.argument(3, "bias"), call.argument(4, "eps", 1e-5)
    )


def instance_norm(call: Call) -> Tensor:
    """As :func:`group_norm` with a group per channel; as :func:`batch_norm` where it uses running statistics."""
    x = call.args[0]
    weight, bias, mean, variance = _of_batch_norm(call)
    eps = call.argument(7, "eps", 1e-5)
    if call.argument(5, "use_input_stats", True):
        return _grouped(call, x, x.shape[1], weight, bias, eps)
    return _affine(call, x, weight, bias, mean, variance, eps)


def batch_norm(call: Call) -> Tensor:
    """With running statistics a batch norm is linear up to its shift; those of a batch are held."""
    x = call.args[0]
    weight, bias, mean, variance = _of_batch_norm(call)
    training, eps = call.argument(5, "training", False), call.argument(7, "eps", 1e-5)
    if training or mean is None:
        wide = _wide(x.detach()).transpose(0, 1).flatten(1)
        mean, variance = wide.mean(1), wide.var(1, correction=0)
    return _affine(call, x, weight, bias, mean, variance, eps)


def _of_batch_norm(call: Call) -> list[Any]:
    return [call.argument(i, name) for i, name in enumerate(("weight", "bias", "running_mean", "running_var"), start=1)]


def _affine(
    call: Call, x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, variance: Tensor, eps: float
) -> Tensor:
    scale = (variance + eps).rsqrt()
    scale = scale if weight is None else scale * weight
    shift = -mean * scale if bias is None else bias - mean * scale
    along = scale.view(-1, *[1] * (x.dim() - 2))
    result = linear(
        x,
        lambda value: (
            call.function(value, *call.args[1:], **call.kwargs),
            lambda gradient: (gradient * along).to(x.dtype),
        ),
    )
    call.add_constant(result, shift, 1)
    return result


def _grouped(call: Call, x: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    def compute(value: Tensor) -> tuple[Tensor, Pull]:
        result = call.function(value, *call.args[1:], **call.kwargs)
        grouped = _wide(value).reshape(len(x), groups, -1)
        scale = (grouped.var(2, correction=0, keepdim=True) + eps).rsqrt()

        def pull(gradient: Tensor) -> Tensor:
            if weight is not None:
                gradient = gradient * weight.view(-1, *[1] * (x.dim() - 2))
            scaled = gradient.reshape(len(x), groups, -1) * scale
            return (scaled - scaled.mean(2, keepdim=True)).view_as(x).to(x.dtype)

        return result, pull

    result = linear(x, compute)
    if bias is not None:
        call.add_constant(result, bias, 1)
    return result


def linear_layer(call: Call) -> Tensor:
    """``linear``: the bias is a constant along the last dimension."""
    return _with_bias(call, call.argument(2, "bias"), -1)


def convolution(call: Call) -> Tensor:
    """Convolutions: the bias is a constant along the channels."""
    return _with_bias(call, call.argument(2, "bias"), 1)


def _with_bias(call: Call, bias: Tensor | None, axis: int) -> Tensor:
    hold_gates(call, [call.args[0], call.argument(1, "weight")])
    result: Tensor = call()
    if bias is not None and not bias.requires_grad:
        call.add_constant(result, bias, axis)
    return result


def sum_and_product(call: Call) -> Tensor:
    """``addmm``, ``baddbmm``, ``addcmul`` and the like: beta * a + alpha * b * c."""
    added = call.args[0]
    hold_gates(call, call.args[1:3])
    result: Tensor = call()
    if isinstance(added, Tensor) and not added.requires_grad:
        call.add_constant(result, added * call.kwargs.get("beta", 1), source=added)
    return result


def addition(call: Call) -> Tensor:
    """A constant that is added, such as a position embedding."""
    return _sum(call, 1, call.kwargs.get("alpha", 1))


def subtraction(call: Call) -> Tensor:
    """A constant that is subtracted, or from which is subtracted."""
    return _sum(call, 1, -call.kwargs.get("alpha", 1))


def reversed_subtraction(call: Call) -> Tensor:
    """``rsub``: b - alpha * a."""
    return _sum(call, -call.kwargs.get("alpha", 1), 1)


def _sum(call: Call, first: float, second: float) -> Tensor:
    result: Tensor = call()
    for value, factor in ((call.args[0], first), (call.argument(1, "other"), second)):
        if isinstance(value, Tensor):
            if not value.requires_grad:
                call.add_constant(result, value * factor, source=value)
        elif value != 0:
            call.add_constant(result, value * factor)
    return result


def joining(call: Call) -> Tensor:
    """``cat``: constants among the parts, such as a class token."""
    tensors, dim = call.args[0], call.argument(1, "dim", 0)
    result: Tensor = call()
    start = 0
    for tensor in tensors:
        if not tensor.requires_grad and tensor.numel():
            call.add_constant(result, tensor, part=(dim, start, tensor.shape[dim]))
        start += tensor.shape[dim] if tensor.dim() == result.dim() else 0
    return result


def stacking(call: Call) -> Tensor:
    """``stack``: as :func:`joining`."""
    tensors, dim = call.args[0], call.argument(1, "dim", 0)
    result: Tensor = call()
    for index, tensor in enumerate(tensors):
        if not tensor.requires_grad:
            call.add_constant(result, tensor.unsqueeze(dim), part=(dim, index, 1), source=tensor)
    return result


def choice(call: Call) -> Tensor:
    """``where``: the constant that is chosen is added."""
    if len(call.args) < 3:
        return hold(call)
    condition, *values = call.args[:3]
    result: Tensor = call()
    for value, chosen in zip(values, (condition, ~condition), strict=True):
        if not (isinstance(value, Tensor) and value.requires_grad):
            call.add_constant(result, torch.where(chosen, value, torch.zeros_like(result)), source=value)
    return result


def filling(call: Call) -> Tensor:
    """``masked_fill``: the value is added where the mask is set."""
    mask, value = call.argument(1, "mask"), call.argument(2, "value")
    result: Tensor = call()
    if not isinstance(value, Tensor) or not value.requires_grad:
        call.add_constant(result, torch.where(mask, value, torch.zeros_like(result)), source=value)
    return result


def padding(call: Call) -> Tensor:
    """``pad``: a border of something else than zeros is added."""
    result: Tensor = call()
    value = call.argument(3, "value")
    if value and call.argument(2, "mode", "constant") == "constant":
        zeros = torch.zeros_like(call.args[0])
        call.add_constant(result, call.function(zeros, *call.args[1:], **call.kwargs))
    return result


def gated_half(call: Call) -> Tensor:
    """``glu``: the second half is the gate of the first."""
    x, dim = call.args[0], call.argument(1, "dim", -1)

    def compute(value: Tensor) -> tuple[Tensor, Pull]:
        kept, gates = value.chunk(2, dim)
        gates = gates.sigmoid()
        return kept * gates, lambda gradient: torch.cat([gradient * gates, torch.zeros_like(gates)], dim)

    return linear(x, compute)


def cosine(call: Call) -> Tensor:
    """``cosine_similarity``: a product of two vectors over their lengths, which are held."""
    first, second = call.args[:2]
    value = call.value()
    dim = call.argument(2, "dim", 1)
    eps = call.argument(3, "eps", 1e-8)
    lengths = [t.detach().norm(dim=dim, keepdim=True).clamp_min(eps) for t in (first, second)]
    both = Call(torch.mul, (first, second), {}, call.gate_of, call.add_constant)
    summed = (product(both) / (lengths[0] * lengths[1])).sum(dim)
    # The value is torch's own to the last place.
    return linear(summed, lambda _: (value, lambda gradient: gradient))


def _wide(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def _table(*groups: tuple[Rule, str]) -> dict[str, Rule]:
    return {name: rule for rule, names in groups for name in names.split()}


RULES: dict[str, Rule] = _table(
    # Scales: lengths and deviations.
    (length, "norm linalg_norm linalg_vector_norm linalg_matrix_norm frobenius_norm nuclear_norm std std_mean"),
    (variance, "var"),
    (variance_and_mean, "var_mean"),
    (hold, "rsqrt reciprocal"),
    # Steps: their slope is zero, so that a product with them is a product with a scale.
    (hold, "sign sgn round floor ceil trunc heaviside"),
    (layer_norm, "layer_norm"),
    (rms_norm, "rms_norm"),
    (group_norm, "group_norm"),
    (instance_norm, "instance_norm"),
    (batch_norm, "batch_norm"),
    # Gates and attention weights.
    (gate, "sigmoid hardsigmoid softmax softmin special_expit"),
    (attention, "scaled_dot_product_attention"),
    (gated_half, "glu"),
    # Elementwise functions that are zero at zero.
    (relu, "relu leaky_relu rrelu prelu"),
    (hold_quotient, "gelu silu mish hardswish elu selu celu tanh softsign tanhshrink hardshrink softshrink erf"),
    (hold_quotient, "square sqrt"),
    (power, "pow float_power"),
    (clamp, "clamp clip clamp_min clamp_max hardtanh relu6"),
    (extremum, "maximum minimum fmax fmin"),
    # Products and divisions of what depends on the layer with itself.
    (product, "mul multiply matmul bmm mm mv dot inner outer ger einsum tensordot bilinear chain_matmul kron"),
    (quotient_of_two, "div divide true_divide"),
    (cosine, "cosine_similarity"),
    # Constants that are added.
    (linear_layer, "linear"),
    (convolution, "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d"),
    (sum_and_product, "addmm baddbmm addbmm addmv addr addcmul"),
    (addition, "add"),
    (subtraction, "sub subtract"),
    (reversed_subtraction, "rsub"),
    (joining, "cat concat concatenate"),
    (stacking, "stack"),
    (choice, "where"),
    (filling, "masked_fill"),
    (padding, "pad"),
)
"""Every function that is not followed by its own gradient, or that adds a constant."""

_BOUNDED = frozenset("tanh softsign erf clamp clip clamp_min clamp_max hardtanh relu6".split())


def gate_level(name: str) -> Gate | None:
    """Which gate the result of a function is by itself; None where that depends on its arguments."""
    rule = RULES.get(name)
    if rule in (length, variance):
        return Gate.SCALE
    if rule is gate:
        return Gate.WEIGHT
    if name in _BOUNDED:
        return Gate.BOUNDED
    if rule is relu or (rule is hold_quotient and name not in ("square", "sqrt")):
        return Gate.ACTIVATION
    return None
