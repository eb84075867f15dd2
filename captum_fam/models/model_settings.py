"""The settings of a user for a model; what is not set is found."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from torch import nn

from captum_fam.geometry import height_and_width
from captum_fam.models.embedding_model import EmbeddingModel
from captum_fam.models.outputs import Output, check_output
from captum_fam.preprocessing import Resize, check_channels, check_size
from captum_fam.similarity import get_similarity

if TYPE_CHECKING:
    from captum_fam.attr import TokenGrid


@dataclasses.dataclass(frozen=True)
class ModelSettings:
    """The settings of a user for a model: keywords of :func:`~captum_fam.models.create_model`. None stands for not set.

    Attributes:
        layer: dotted name of the module to explain. Default: None.
        output: which part of the output of the network is the embedding. Default: None.
        token_grid: layout of the tokens of the layer. Default: None.
        pooling: module from the output of the layer to one feature per channel. Default: None.
        size: side of the square input, or ``(height, width)``, in pixels. Default: None.
        resize: what happens to the aspect ratio of a photograph. Default: None.
        mean: mean of each channel. Default: None.
        std: standard deviation of each channel. Default: None.
        interpolation: interpolation of the resizing. Default: None.
        similarity: name of the similarity. Default: None.

    Raises:
        ValueError: for an unknown similarity, an impossible size, or a mean or std that is no list of numbers, before
            any model is made.
        TypeError: for an output that is no name, index or function.

    Example:
        >>> ModelSettings(size=64).applied_to(EmbeddingModel("mine", model, "layer4")).size
        64
    """

    layer: str | None = None
    output: Output | None = None
    token_grid: TokenGrid | None = None
    pooling: nn.Module | None = None
    size: int | tuple[int, int] | None = None
    resize: Resize | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    interpolation: str | None = None
    similarity: str | None = None

    def __post_init__(self) -> None:
        if self.size is not None:
            object.__setattr__(self, "size", check_size(self.size))
        for name in ("mean", "std"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, check_channels(getattr(self, name), name))
        object.__setattr__(self, "output", check_output(self.output))
        if self.similarity is not None:
            get_similarity(self.similarity)

    def of_preprocessing(self) -> dict[str, Any]:
        """The settings of the preprocessing that are set, by the names of attributes of :class:`EmbeddingModel`."""
        names = ("size", "resize", "mean", "std", "interpolation")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    def refuse_output(self, name: str) -> None:
        """Refuse the setting ``output`` for a model whose output is the embedding.

        Args:
            name: name of the model.

        Raises:
            ValueError: if ``output`` is set.
        """
        if self.output is not None:
            raise ValueError(f"output={self.output!r}: the output of {name} is the embedding (B, J) itself")

    def without_output(self) -> ModelSettings:
        """The same settings without ``output``, for a network whose output is the embedding."""
        return dataclasses.replace(self, output=None)

    def applied_to(self, net: EmbeddingModel) -> EmbeddingModel:
        """The model with these settings in place of its own attributes.

        Args:
            net: the model, whose layer is already ``layer`` if that is set.

        Returns:
            The model.

        Raises:
            ValueError: for a size that the model does not take, or settings that no preprocessing can have.
        """
        changes = self.of_preprocessing()
        changes |= {
            name: getattr(self, name)
            for name in ("token_grid", "pooling", "similarity")
            if getattr(self, name) is not None
        }
        size = changes.get("size", net.size)
        is_resized = height_and_width(size) != height_and_width(net.size)
        if not net.any_size and is_resized:
            raise ValueError(f"size={size}: {net.name} takes images of {net.size} pixels only")
        if not net.any_size and changes.get("resize", net.resize) == "keep":
            raise ValueError(f"resize='keep': {net.name} takes images of {net.size} pixels only; take 'pad'")
        if net.token_grid is not None and self.token_grid is None and is_resized:
            # Imported here, because the search for layers imports all attribution methods.
            from captum_fam.models.pooled_layer import layer_of

            found_layer = layer_of(net.model, size, net.any_size, net.layer, len(changes.get("mean", net.mean)))
            changes["token_grid"] = found_layer.token_grid
        changed = dataclasses.replace(net, **changes) if changes else net
        _ = changed.preprocessing  # refuses impossible settings
        return changed


NO_SETTINGS = ModelSettings()
"""The settings of a user who sets nothing."""
