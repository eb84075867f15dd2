"""The attribution objects of an explanation: one per method, for one support and the layer that they all explain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from captum_fam.attr.layer_similarity_cam import LayerSimilarityCAM
from captum_fam.attr.registry import MapMethod
from captum_fam.explanation.reading.layers import ChosenLayers, LayerLike, choose_layers
from captum_fam.explanation.reading.methods import options_in_words, options_of
from captum_fam.explanation.reading.model import ExplainedModel
from captum_fam.explanation.reading.parts import Part
from captum_fam.similarity import Similarity
from captum_fam.support import Gallery, SimilarityToSupport


@dataclass
class Attributions:
    """Makes the attribution objects of several methods.

    The objects are made once for a support that all queries share, and else for each batch. The layer is chosen once,
    with the first batch.

    Attributes:
        model: the model.
        methods: the methods.
        layer: what the user named as the layer.
        options: arguments of the constructors by name; each method gets those that it takes.
        score_options: arguments of :class:`~captum_fam.SimilarityToSupport`.
        layers: the layers that were chosen; None before the first batch.
    """

    model: ExplainedModel
    methods: Sequence[MapMethod]
    layer: LayerLike | None
    options: dict[str, Any]
    score_options: Mapping[str, Any]
    layers: ChosenLayers | None = field(default=None, init=False)
    _made: list[Any] = field(default_factory=list, init=False)
    _scores: SimilarityToSupport | None = field(default=None, init=False)
    _is_shared: bool = field(default=False, init=False)

    def make(self, inputs: Tensor, part: Part, is_shared: bool) -> tuple[list[Any], SimilarityToSupport]:
        """The attribution objects for some queries, and the scores that they explain.

        Args:
            inputs: all queries of the call, ``(B, ...)``, of which the first is used to choose a layer.
            part: the queries with their support and their foil.
            is_shared: whether the support of the call is that of all calls.

        Returns:
            One object per method, in the order of the methods; and their common forward function.
        """
        has_own_foil = isinstance(part.foil, Gallery) and part.foil.per_query
        is_shared = is_shared and part.is_whole and not part.support.per_query and not has_own_foil
        if self._scores is not None and self._is_shared and is_shared:
            return self._made, self._scores
        layers = self.choose(inputs)
        # All methods share the scores, so that the support is embedded once.
        scores = SimilarityToSupport(self.model.forward_func, part.support, foil=part.foil, **self.score_options)
        made = [method.create(scores, layers.argument, **options_of(method, self.options)) for method in self.methods]
        for new, old in zip(made, self._made, strict=False):
            if isinstance(new, LayerSimilarityCAM):
                # A batch with a support of its own has an object of its own; the user is warned once.
                new.has_warned = old.has_warned
        self._made, self._scores, self._is_shared = made, scores, is_shared
        return made, scores

    @property
    def similarity(self) -> Similarity:
        """The similarity that the last scores were computed with."""
        assert self._scores is not None
        return self._scores.similarity

    def choose(self, inputs: Tensor) -> ChosenLayers:
        """The layers, chosen in the first call.

        Args:
            inputs: queries, ``(B, ...)``, of which the first is used.
        """
        if self.layers is None:
            given = "token_grid" in self.options
            self.layers = choose_layers(self.model, self.layer, self.methods, inputs, measures_grid=not given)
            if self.layers.token_grid is not None:
                self.options = {"token_grid": self.layers.token_grid, **self.options}
        return self.layers

    def about(self, method: MapMethod) -> dict[str, Any]:
        """The options of a method, as JSON can represent them.

        Args:
            method: one of the methods.
        """
        return options_in_words(method, self.options)
