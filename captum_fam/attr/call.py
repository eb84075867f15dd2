"""One call of a layer method, and the maps that the method makes of it."""

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

if TYPE_CHECKING:
    from captum_fam.attr.base import SimilarityLayerAttribution


@dataclass
class LayerCall:
    """One call of ``attribute``: what the model gave for the queries, and how they compare with the support.

    Attributes:
        method: whose call it is.
        inputs: the tensors of the queries.
        args: further arguments of the model.
        support: as it was given.
        embedded: the same as embeddings, with a foil where there is one; None for a baseline.
        at_input: whether the layers' inputs are explained instead of their outputs.
        sum_channels: whether maps are summed over the channels.
        run: of the model, which ran once.
        notes: what the user is to be warned of; a method adds to them.
        watched: what :meth:`SimilarityLayerAttribution.watching` noted while the model ran.
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
        """The queries, compared with the support."""
        assert self.embedded is not None
        with plain_arithmetic(self.run.embedding.device):
            comparison = self.embedded.compare(self.run.embedding, self.target, self.method.similarity)
            if not comparison.similarities.isfinite().all():
                raise ValueError("support: its similarity to the query is NaN or inf")
            comparison.compute()
        return comparison

    @cached_property
    def activations(self) -> list[tuple[Tensor, ...]]:
        """The layers' tensors as ``(B, N, *spatial)``."""
        return self.method.activations_of(self.run)


@dataclass
class LayerMaps:
    """What a method gives for one call: an entry per layer.

    Attributes:
        maps: for each tensor of the layer ``(B, 1, *spatial)``, or ``(B, N, *spatial)`` per channel.
        contributions, convergence_deltas, coverages, shares, standard_error: as in :class:`AttributionDetails`.
    """

    maps: list[tuple[Tensor, ...]]
    contributions: list[tuple[Tensor, ...]] | None = None
    convergence_deltas: list[Tensor] | None = None
    coverages: list[Tensor] | None = None
    shares: list[Shares] | None = None
    standard_error: Tensor | None = None
