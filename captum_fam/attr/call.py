"""One call of a layer method, and the maps that the method makes from the call."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from torch import Tensor

from captum_fam._arithmetic import plain_arithmetic
from captum_fam._captum import TargetType
from captum_fam.attr._layer_run import LayerRun
from captum_fam.attr.account import Shares
from captum_fam.support import Comparison, Support
from captum_fam.support.target import select_class

if TYPE_CHECKING:
    from captum_fam.attr.base import SimilarityLayerAttribution


@dataclass
class LayerCall:
    """One call of ``attribute``: what the model gave for the queries, and their comparison with the support.

    Attributes:
        method: the method that was called.
        inputs: the tensors of the queries, ``(B, ...)`` each.
        args: further arguments of the model.
        support: the support as the user passed it, images or embeddings; None for a baseline.
        embedded: the support as embeddings, with the foil of a SimilarityToSupport; None for a baseline.
        target: the class to explain, in any form that Captum takes; None: the predicted class of each query.
        at_input: whether the inputs of the layers are explained instead of the outputs.
        sum_channels: whether maps are summed over the channels.
        run: what the forward pass of the queries left.
        notes: texts of the warnings for the user; a method may add texts.
        watched: the value of the context manager :meth:`SimilarityLayerAttribution.watching`.
    """

    method: SimilarityLayerAttribution
    inputs: tuple[Tensor, ...]
    args: tuple[Any, ...] | None
    support: Support | None
    embedded: Support | None
    target: TargetType
    at_input: bool
    sum_channels: bool
    run: LayerRun
    notes: list[str] = field(default_factory=list)
    watched: Any = None

    @cached_property
    def comparison(self) -> Comparison:
        """The comparison of the queries with the support, computed on first use.

        Raises:
            ValueError: for a similarity that is NaN or infinite, or a support that does not fit the queries.
            AssertionError: for a target that Captum refuses.
        """
        assert self.embedded is not None
        with plain_arithmetic(self.run.embedding.device):
            comparison = self.embedded.compare(self.run.embedding, self.target, self.method.similarity)
            if not comparison.similarities.isfinite().all():
                raise ValueError("support: its similarity to the query is NaN or inf")
            comparison.compute()
            wanted = select_class(self.target, comparison.predicted, comparison.members.n_classes)
            if not comparison.target.equal(wanted):
                raise ValueError(f"support: compare() of {type(self.support).__name__} does not follow its target")
        return comparison

    @cached_property
    def activations(self) -> list[tuple[Tensor, ...]]:
        """The tensors of each layer as ``(B, N, *spatial)``, computed on first use."""
        return self.method.activations_of(self.run)


@dataclass
class LayerMaps:
    """What a method gives for one call: lists with one entry per layer.

    Attributes:
        maps: for each tensor of the layer ``(B, 1, *spatial)``, or ``(B, N, *spatial)`` without a sum over the
            channels.
        contributions, convergence_deltas, coverages, shares: lists of the values that :class:`AttributionDetails`
            describes; None for a method without such values.
        standard_error: see :class:`AttributionDetails`, for methods of a single layer.
    """

    maps: list[tuple[Tensor, ...]]
    contributions: list[tuple[Tensor, ...]] | None = None
    convergence_deltas: list[Tensor] | None = None
    coverages: list[Tensor] | None = None
    shares: list[Shares] | None = None
    standard_error: Tensor | None = None
