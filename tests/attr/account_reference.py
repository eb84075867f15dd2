"""The account of a similarity with every scale held, in float64, by pushing one source at a time forward.

Independent of the package and of torch: plain numpy, loops over positions and heads, no derivative. A pass through the
network keeps the scales that it meets: deviations, attention weights, quotients of activation functions, gates, norms.
With these the network is affine. So each source, one position of the layer or one bias at one position, is pushed
alone through the network without its biases; what arrives at the embedding is the contribution of that source. A value
is ``(positions, channels)``: a grid row by row, or tokens, or one row for what has been pooled.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


class Source(NamedTuple):
    """What enters the network at one position; ``values`` is zero everywhere else.

    ``kind`` is "layer" for the explained activation, "bias", or "bypass" for what goes around the layer.
    """

    kind: str
    position: int
    values: Array
    n_positions: int


def alone(kind: str, position: int, n_positions: int, channels: Array) -> Source:
    values = np.zeros((n_positions, len(channels)))
    values[position] = channels
    return Source(kind, position, values, n_positions)


class Step:
    """One operation: ``forward`` keeps its scales, ``push`` is its linear part under those scales."""

    n_positions = 0  # of the output, set by ``forward``

    def forward(self, x: Array) -> Array:
        raise NotImplementedError

    def push(self, x: Array) -> Array:
        raise NotImplementedError

    def bias(self) -> Array | None:
        """What is added at every position of the output, ``(channels,)``."""
        return None

    def sources(self) -> Iterator[Source]:
        """Every bias at every position, as it stands in the output."""
        bias = self.bias()
        if bias is not None:
            for position in range(self.n_positions):
                yield alone("bias", position, self.n_positions, bias)


class Affine(Step):
    """A step whose pass is its linear part plus the bias."""

    def hold(self, x: Array) -> None:
        """Keep the scales of this pass."""

    def forward(self, x: Array) -> Array:
        self.hold(x)
        y = self.push(x)
        self.n_positions = len(y)
        bias = self.bias()
        return y if bias is None else y + bias


class Chain(Step):
    def __init__(self, steps: Sequence[Step]) -> None:
        self.steps = list(steps)

    def forward(self, x: Array) -> Array:
        for step in self.steps:
            x = step.forward(x)
        return x

    def push(self, x: Array) -> Array:
        for step in self.steps:
            x = step.push(x)
        return x

    def sources(self) -> Iterator[Source]:
        for index, step in enumerate(self.steps):
            rest = Chain(self.steps[index + 1 :])
            for source in step.sources():
                yield source._replace(values=rest.push(source.values))


class Residual(Step):
    """x + branch(x)."""

    def __init__(self, branch: Sequence[Step]) -> None:
        self.branch = Chain(branch)

    def forward(self, x: Array) -> Array:
        return x + self.branch.forward(x)

    def push(self, x: Array) -> Array:
        return x + self.branch.push(x)

    def sources(self) -> Iterator[Source]:
        return self.branch.sources()


class Fork(Step):
    """Where a residual branch begins that the layer stands in; keeps what goes around it to the :class:`Bypass`."""

    def forward(self, x: Array) -> Array:
        self.skipped = x
        return x


@dataclass
class Bypass(Step):
    """Where the branch ends: what was skipped is added, and no push from the layer changes it."""

    fork: Fork

    def forward(self, x: Array) -> Array:
        return x + self.fork.skipped

    def push(self, x: Array) -> Array:
        return x

    def sources(self) -> Iterator[Source]:
        for position, channels in enumerate(self.fork.skipped):
            yield alone("bypass", position, len(self.fork.skipped), channels)


@dataclass
class Linear(Affine):
    """W x + b at every position; ``weight`` is ``(out, in)``."""

    weight: Array
    shift: Array | None = None

    def push(self, x: Array) -> Array:
        return np.array([self.weight @ channels for channels in x])

    def bias(self) -> Array | None:
        return self.shift


@dataclass
class BatchNorm(Affine):
    """With the running statistics: a scale w / sqrt(var + eps), and beta - mean * scale as its bias."""

    weight: Array
    beta: Array
    mean: Array
    variance: Array
    eps: float = 1e-5

    def push(self, x: Array) -> Array:
        return np.array([self.scale() * channels for channels in x])

    def bias(self) -> Array:
        return self.beta - self.mean * self.scale()

    def scale(self) -> Array:
        return np.array([w / math.sqrt(v + self.eps) for w, v in zip(self.weight, self.variance, strict=True)])


@dataclass
class LayerNorm(Affine):
    """Over the channels of each position. The mean is linear, the deviation is held; RMSNorm: not ``centered``."""

    weight: Array
    beta: Array | None
    eps: float = 1e-5
    centered: bool = True

    def hold(self, x: Array) -> None:
        self.deviations = []
        for channels in x:
            mean = sum(channels) / len(channels) if self.centered else 0.0
            square = sum((value - mean) ** 2 for value in channels) / len(channels)
            self.deviations.append(math.sqrt(square + self.eps))

    def push(self, x: Array) -> Array:
        y = np.zeros_like(x)
        for position, (channels, deviation) in enumerate(zip(x, self.deviations, strict=True)):
            mean = sum(channels) / len(channels) if self.centered else 0.0
            for n, value in enumerate(channels):
                y[position, n] = (value - mean) / deviation * self.weight[n]
        return y

    def bias(self) -> Array | None:
        return self.beta


@dataclass
class Quotient(Affine):
    """phi(x) = x * (phi(x) / x), the quotient held; ``quotient`` gives it for one number."""

    quotient: Callable[[float], float]

    def hold(self, x: Array) -> None:
        self.held = np.array([[self.quotient(float(value)) for value in channels] for channels in x])

    def push(self, x: Array) -> Array:
        return self.held * x


def relu(value: float) -> float:
    return 1.0 if value > 0 else 0.0


def gelu(value: float) -> float:
    return (1 + math.erf(value / math.sqrt(2))) / 2


def tanh_gelu(value: float) -> float:
    return (1 + math.tanh(math.sqrt(2 / math.pi) * (value + 0.044715 * value**3))) / 2


def hardsigmoid(value: float) -> float:
    return min(max(value + 3, 0.0), 6.0) / 6


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def quick_gelu(value: float) -> float:
    return sigmoid(1.702 * value)


@dataclass
class Scale(Affine):
    """A fixed factor of each channel."""

    factors: Array

    def push(self, x: Array) -> Array:
        return np.array([self.factors * channels for channels in x])


@dataclass
class SqueezeExcite(Affine):
    """Channels times sigmoid(W2 relu(W1 mean + b1) + b2): the gate is held, so that its biases own nothing."""

    squeeze: Array
    squeeze_bias: Array
    excite: Array
    excite_bias: Array

    def hold(self, x: Array) -> None:
        hidden = self.squeeze @ (sum(x) / len(x)) + self.squeeze_bias
        opened = self.excite @ np.array([max(value, 0.0) for value in hidden]) + self.excite_bias
        self.gate = np.array([sigmoid(value) for value in opened])

    def push(self, x: Array) -> Array:
        return np.array([self.gate * channels for channels in x])


@dataclass
class Conv(Affine):
    """``weight`` is ``(out, in, rows, columns)``, or ``(channels, 1, rows, columns)`` for a depthwise one."""

    weight: Array
    shift: Array | None
    size: tuple[int, int]
    stride: int = 1
    padding: int = 0
    depthwise: bool = False

    @property
    def output_size(self) -> tuple[int, int]:
        rows, columns = (
            (side + 2 * self.padding - kernel) // self.stride + 1
            for side, kernel in zip(self.size, self.weight.shape[2:], strict=True)
        )
        return rows, columns

    def push(self, x: Array) -> Array:
        height, width = self.size
        rows, columns = self.output_size
        y = np.zeros((rows * columns, len(self.weight)))
        for row in range(rows):
            for column in range(columns):
                for i in range(self.weight.shape[2]):
                    for j in range(self.weight.shape[3]):
                        r, c = row * self.stride + i - self.padding, column * self.stride + j - self.padding
                        if 0 <= r < height and 0 <= c < width:
                            kernel, channels = self.weight[:, :, i, j], x[r * width + c]
                            y[row * columns + column] += (
                                kernel[:, 0] * channels if self.depthwise else kernel @ channels
                            )
        return y

    def bias(self) -> Array | None:
        return self.shift


@dataclass
class Attention(Step):
    """Multi-head self-attention with its projections; ``weight`` is that of q, k and v, one below the other.

    The attention weights are held, so that q and k, and their biases, own nothing. The bias of v acts at the token that
    it is added to, before any token looks at another.
    """

    weight: Array
    shift: Array
    out_weight: Array
    out_shift: Array
    heads: int

    def forward(self, x: Array) -> Array:
        width = x.shape[1]
        size = width // self.heads
        q, k = ([self.weight[at : at + width] @ t + self.shift[at : at + width] for t in x] for at in (0, width))
        self.attention = np.zeros((self.heads, len(x), len(x)))
        for head in range(self.heads):
            part = slice(head * size, (head + 1) * size)
            for i in range(len(x)):
                logits = [float(q[i][part] @ k[j][part]) / math.sqrt(size) for j in range(len(x))]
                raised = [math.exp(value - max(logits)) for value in logits]
                self.attention[head, i] = [value / sum(raised) for value in raised]
        values = np.array([self.weight[2 * width :] @ token + self.shift[2 * width :] for token in x])
        self.n_positions = len(x)
        return self.mix(values) + self.out_shift

    def push(self, x: Array) -> Array:
        return self.mix(np.array([self.weight[2 * x.shape[1] :] @ token for token in x]))

    def mix(self, values: Array) -> Array:
        """The held attention over ``values``, and the output projection."""
        size = values.shape[1] // self.heads
        y = np.zeros_like(values)
        for head in range(self.heads):
            part = slice(head * size, (head + 1) * size)
            for i in range(len(values)):
                for j in range(len(values)):
                    y[i, part] += self.attention[head, i, j] * values[j, part]
        return np.array([self.out_weight @ token for token in y])

    def sources(self) -> Iterator[Source]:
        for position in range(self.n_positions):
            source = alone("bias", position, self.n_positions, self.shift[2 * self.weight.shape[1] :])
            yield source._replace(values=self.mix(source.values))
            yield alone("bias", position, self.n_positions, self.out_shift)


@dataclass
class Tokens(Step):
    """Prefix tokens before the patches, then a place for every token: both are added constants, at their tokens."""

    prefix: Array
    places: Array

    def forward(self, x: Array) -> Array:
        return self.push(x) + self.constants()

    def push(self, x: Array) -> Array:
        return np.concatenate([np.zeros_like(self.prefix), x])

    def constants(self) -> Array:
        constants = self.places.copy()
        constants[: len(self.prefix)] += self.prefix
        return constants

    def sources(self) -> Iterator[Source]:
        for position, channels in enumerate(self.constants()):
            yield alone("bias", position, len(self.places), channels)


@dataclass
class Select(Affine):
    """One token, as a pooled vector."""

    position: int

    def push(self, x: Array) -> Array:
        return x[self.position : self.position + 1]


@dataclass
class Mean(Affine):
    """The mean over the positions from ``first`` on, as a pooled vector."""

    first: int = 0

    def push(self, x: Array) -> Array:
        total = np.zeros(x.shape[1])
        for channels in x[self.first :]:
            total += channels
        return (total / (len(x) - self.first))[None]


class UnitLength(Affine):
    """x / ‖x‖ of a pooled vector, the norm held."""

    def hold(self, x: Array) -> None:
        self.norm = math.sqrt(sum(float(value) ** 2 for value in x[0]))

    def push(self, x: Array) -> Array:
        return x / self.norm


# The account


def contributions(tail: Step, activation: Array) -> tuple[Array, list[Source]]:
    """The embedding, and every source with its contribution to the embedding as ``values``, ``(J,)``."""
    embedding = tail.forward(activation)[0]
    layer = [alone("layer", p, len(activation), channels) for p, channels in enumerate(activation)]
    pushed = [source._replace(values=tail.push(source.values)[0]) for source in layer]
    return embedding, pushed + [source._replace(values=source.values[0]) for source in tail.sources()]


def cosine_weights(embedding: Array, supports: Array) -> Array:
    """u with <embedding, u> = the mean cosine to the supports, the embedding's norm held."""
    length = math.sqrt(sum(float(value) ** 2 for value in embedding))
    total = np.zeros(len(embedding))
    for t in supports:
        total += t / math.sqrt(sum(float(value) ** 2 for value in t)) / length
    return total / len(supports)


class Account(NamedTuple):
    """A score by its owners. ``elsewhere`` is that of biases on another grid, which own no position of this one."""

    map: Array
    class_token: float
    registers: float
    bias: float
    bypass: float
    elsewhere: float


def account(
    sources: Sequence[Source], weights: Array, size: tuple[int, int], prefix: int = 0, biases: str = "positions"
) -> Account:
    """Who owns how much of <embedding, weights>, for a layer of ``size``.

    Args:
        sources: from ``contributions``.
        weights: of the embedding's features in the score.
        size: h and w of the layer.
        prefix: number of the tokens before the patches: the class token, then registers.
        biases: "positions", or "apart" to count every bias as bias.
    """
    n_patches = size[0] * size[1]
    patches = np.zeros(n_patches)
    owners = dict.fromkeys(("class_token", "registers", "bias", "bypass", "elsewhere"), 0.0)
    for source in sources:
        share = sum(float(a) * float(b) for a, b in zip(source.values, weights, strict=True))
        before = prefix if source.n_positions == prefix + n_patches else 0
        if source.kind == "bypass":
            owners["bypass"] += share
        elif source.kind == "bias" and (biases == "apart" or source.n_positions == 1):
            owners["bias"] += share
        elif source.n_positions not in (n_patches, prefix + n_patches):
            owners["elsewhere"] += share
        elif source.position >= before:
            patches[source.position - before] += share
        else:
            owners["registers" if source.position else "class_token"] += share
    return Account(patches.reshape(size), **owners)
