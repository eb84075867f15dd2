"""Modules that give the embedding alone, around networks that give more or give it in another form."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from numbers import Integral
from typing import Any

from torch import Tensor, nn

from captum_fam._text import printable
from captum_fam.embedding.forward import check_embedding, output_fields

Output = str | int | Callable[[Any], Any]
"""Which part of the output of a network is the embedding: the name of a field, an index, or a function."""


class EmbeddingOutput(nn.Module):
    """A network whose output is reduced to its embedding.

    Args:
        model: the network.
        output: which part of the output is the embedding: the name of a field, an index of a tuple, or a function. None
            for the output itself, or for what :func:`~captum_fam.embedding.forward.check_embedding` takes out of it.
            Default: None.
        arguments: further arguments of the network, by name. Default: none.

    Raises:
        TypeError: for an output of another type.

    Example:
        >>> from torch import nn
        >>> class Two(nn.Module):
        ...     def forward(self, images):
        ...         return {"features": images.mean((2, 3)), "logits": images.sum((2, 3))}
        >>> EmbeddingOutput(Two(), output="features")(torch.rand(2, 3, 64, 64)).shape
        torch.Size([2, 3])
    """

    def __init__(
        self, model: nn.Module, output: Output | None = None, arguments: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__()
        self.training = model.training  # a module is made in training mode, and eval() was called on the network
        self.model = model
        self.output = check_output(output)
        self.arguments = dict(arguments or {})

    def forward(self, *args: Any) -> Tensor:
        return check_embedding(select_output(self.whole_output(*args), self.output))

    def whole_output(self, *args: Any) -> Any:
        """The output of the network itself, of which the embedding is a part.

        Args:
            args: inputs of the network.

        Returns:
            The output, of any type.
        """
        return self.model(*args, **self.arguments)


class TrunkAndEmbedder(nn.Module):
    """A trunk and an embedder, as pytorch-metric-learning trains them, as one network.

    Args:
        trunk: module from images to features.
        embedder: module from features to embeddings.
        unit_norm: whether an L2 normalization follows. Default: False.

    Example:
        >>> from torch import nn
        >>> trunk = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> TrunkAndEmbedder(trunk, nn.Linear(8, 4))(torch.rand(2, 3, 32, 32)).shape
        torch.Size([2, 4])
    """

    def __init__(self, trunk: nn.Module, embedder: nn.Module, unit_norm: bool = False) -> None:
        super().__init__()
        self.trunk = trunk
        self.embedder = embedder
        self.unit_norm = unit_norm

    def forward(self, images: Tensor) -> Tensor:
        features = self.trunk(images)
        if not isinstance(features, Tensor):
            features = check_embedding(features)
        embedding = check_embedding(self.embedder(features))
        return nn.functional.normalize(embedding, dim=1) if self.unit_norm else embedding


def check_output(output: object) -> Output | None:
    """Check which part of an output a user asks for.

    Args:
        output: as for :class:`EmbeddingOutput`.

    Returns:
        The same; a whole number of NumPy as an ``int``.

    Raises:
        TypeError: for anything but the name of a field, an index, a function or None.

    Example:
        >>> check_output("features"), check_output(-1)
        ('features', -1)
    """
    if not isinstance(output, bool) and isinstance(output, Integral):
        return int(output)
    if output is None or isinstance(output, str) or callable(output):
        return output
    raise TypeError(
        f"output must be the name of a field, an index or a function, got {printable(repr(output), 80)} "
        f"({type(output).__name__})"
    )


def select_output(value: Any, output: Output | None) -> Any:
    """Select the part of an output that is the embedding.

    Args:
        value: output of a network.
        output: as for :class:`EmbeddingOutput`.

    Returns:
        The part.

    Raises:
        ValueError: if the output has no such field or element; the message lists the fields.

    Example:
        >>> select_output({"logits": 1, "features": 2}, "features")
        2
    """
    if output is None:
        return value
    if isinstance(output, str):
        fields = output_fields(value)
        if fields.get(output) is not None:
            return fields[output]
        known = ", ".join(str(key) for key, field in fields.items() if field is not None)
        there = f"the fields {known}" if known and not isinstance(value, Tensor) else f"a {type(value).__name__}"
        raise ValueError(f"output={output!r}: the model gives {there}")
    if isinstance(output, int):
        if isinstance(value, Mapping):
            value = tuple(value.values())
        if not isinstance(value, tuple | list):
            raise ValueError(f"output={output} is an index of a tuple, but the model gives a {type(value).__name__}")
        if not -len(value) <= output < len(value):
            raise ValueError(f"output={output}: the model gives {len(value)} outputs")
        return value[output]
    return output(value)


def give_embedding(model: nn.Module, output: Output | None, made: Any) -> nn.Module:
    """The module that gives the embedding of a network: the network itself, if its output is the embedding.

    Args:
        model: the network.
        output: as for :class:`EmbeddingOutput`.
        made: output of the network for a batch of images.

    Returns:
        A module from images to embeddings ``(B, J)``.

    Raises:
        TypeError, ValueError: if there is no embedding in the output, as
            :func:`~captum_fam.embedding.forward.check_embedding`.

    Example:
        >>> give_embedding(model, "features", {"features": torch.zeros(1, 8)}).model is model
        True
    """
    embedding = check_embedding(select_output(made, output))
    return model if embedding is made else EmbeddingOutput(model, output)
