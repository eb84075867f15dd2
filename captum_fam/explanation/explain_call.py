"""One call of an explainer: its queries with their supports, explained batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from captum_fam.explanation.attributions import Attributions
from captum_fam.explanation.batch import ExplainedBatch, explain_batch_by_all, join_batches
from captum_fam.explanation.reading.compared import Ids, ReadFoil
from captum_fam.explanation.reading.parts import numbered_from, split_queries
from captum_fam.explanation.reading.queries import OwnSupports, are_made_by_a_model
from captum_fam.support import Comparison, Support


@dataclass(frozen=True)
class ExplainCall:
    """What one call explains.

    Attributes:
        queries: inputs of the model, ``(B, ...)``.
        names: their names.
        images: the queries for display.
        support: what they are compared with.
        foil: what their scores are contrasted with.
        is_shared: whether the support is that of all calls.
        own: the supports that are a query themselves.
        own_foil: the supports of the foil that are a query themselves.
        classes: the names of the classes.
        targets: the class of each query; None for the predicted classes.
        ids: hashes of the pictures that the support was made of; None if there are none.
    """

    queries: Tensor
    names: tuple[str, ...]
    images: Any
    support: Support
    foil: ReadFoil
    is_shared: bool
    own: OwnSupports
    own_foil: OwnSupports
    classes: tuple[str, ...]
    targets: Tensor | None
    ids: Ids

    @property
    def placed(self) -> list[tuple[str, Tensor]]:
        """The queries, each with the words for its place."""
        return [(f"inputs: image {n}", one) for n, one in enumerate(self.queries)]

    def explain(
        self,
        attributions: Attributions,
        notes: Sequence[list[str]],
        *,
        batch_size: int,
        embedder: Callable[..., Any] | None,
        keeps_comparisons: bool,
    ) -> tuple[list[dict[str, Any]], list[Comparison]]:
        """Explain the queries batch by batch.

        Args:
            attributions: makes the attribution objects of the methods.
            notes: for each method the list to which its warnings are added.
            batch_size: queries per batch.
            embedder: maps images to embeddings; None if a method needs the images of the support.
            keeps_comparisons: whether the comparisons of the batches are returned.

        Returns:
            For each method the fields of :class:`~captum_fam.explanation.batch.ExplainedBatch` for all queries; and the
            comparison of each batch.

        Raises:
            ValueError, TypeError: as :func:`~captum_fam.explain`.
        """
        comparisons: list[Comparison] = []
        batches: list[list[ExplainedBatch]] = [[] for _ in notes]
        for part in split_queries(
            self.support, self.own, self.foil, self.own_foil, len(self.queries), batch_size, embedder
        ):
            with numbered_from(part.queries.start):
                made, scores = attributions.make(self.queries, part, self.is_shared)
                explained = explain_batch_by_all(
                    attributions.methods,
                    made,
                    scores,
                    self.queries[part.queries],
                    None if self.targets is None else self.targets[part.queries],
                    notes,
                    embeds_supports=self.ids is not None or are_made_by_a_model(self.support),
                )
            comparison = explained[0].comparison
            assert comparison is not None
            attributions.model.length = comparison.query.shape[1]
            comparisons += [comparison] if keeps_comparisons else []
            for batch, of_method in zip(explained, batches, strict=True):
                batch.comparison = None  # it holds the embeddings with their gradients
                batch.support_rows = part.whole_rows(batch.support_rows)
                of_method.append(batch)
        return [join_batches(of_method) for of_method in batches], comparisons
