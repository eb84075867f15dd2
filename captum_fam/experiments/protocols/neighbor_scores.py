"""Scores of queries by their neighbors in a memory bank: neighbors of a class, and neighbors of the runner-up."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from captum_fam.experiments.table_methods import Foil, ScoresFor
from captum_fam.experiments.two_part_model import TwoPartModel
from captum_fam.functional import first_largest, rounding_of_supports
from captum_fam.support import BankRows, MemoryBank, SimilarityToSupport, Vote, WeightedSupport


@dataclass(frozen=True)
class BankQuery:
    """B queries, either all with a row in the bank or all without.

    Attributes:
        activation: ``(B, N, h, w)``.
        embedding: ``(B, J)``.
        exclude: row of each query in the bank, ``(B,)``, which is not a neighbor; None if the queries are not in the
            bank.
    """

    activation: Tensor
    embedding: Tensor
    exclude: Tensor | None

    def take(self, rows: Tensor) -> BankQuery:
        """Select queries.

        Args:
            rows: positions of the queries, ``(n,)``.

        Returns:
            The n queries.
        """
        rows = rows.to(self.activation.device)
        exclude = None if self.exclude is None else self.exclude[rows]
        return BankQuery(self.activation[rows], self.embedding[rows], exclude)


def take_votes(vote: Vote, rows: Tensor) -> Vote:
    """Select the votes of queries.

    Args:
        vote: votes of B queries.
        rows: positions of the queries, ``(n,)``.

    Returns:
        The votes of the n queries.
    """
    return Vote(*(part[rows.to(part.device)] for part in vote))


def rows_of_class(bank: MemoryBank, query: BankQuery, vote: Vote, target: Tensor) -> BankRows:
    """The rows of a bank that are the support of a class, for each query.

    Args:
        bank: the memory bank.
        query: B queries.
        vote: vote of the bank for these queries.
        target: a class per query, ``(B,)``. If a class has no neighbor among those that voted, its support is searched
            in the whole bank.

    Returns:
        Indices and weights of the rows.
    """
    bank = bank.using(exclude=query.exclude)
    members = bank.labels[vote.neighbor_indices] == target[:, None]
    if bank.neighbors in ("predicted", "vote") and not members.any(1).all():
        bank = bank.using(neighbors="within-class", exclude=query.exclude)
    return bank.support(query.embedding, target, vote)


def scores_by_neighbors(
    model: TwoPartModel, bank: MemoryBank, query: BankQuery, vote: Vote, target: Tensor
) -> tuple[ScoresFor, Tensor]:
    """Scores of activations for the target of each query, and for the runner-up: the other class with the most votes.

    Args:
        model: model whose tail embeds the activations.
        bank: the memory bank.
        query: B queries.
        vote: vote of the bank for these queries.
        target: a class per query, ``(B,)``.

    Returns:
        A function from a foil to the scores, in which class b is the target of query b, and class B + b is the
        runner-up of query b; and whether a query has a runner-up, boolean ``(B,)``.
    """
    labels = bank.labels[vote.neighbor_indices]
    of_target = labels == target[:, None]
    others = vote.class_scores.scatter(1, target[:, None], -1)
    # Votes that differ only by rounding count as equal. The vote divides a similarity, and its rounding error, by the
    # temperature.
    rounding = rounding_of_supports(query.embedding.shape[1], others.dtype) / bank.temperature
    second = first_largest(others, torch.clamp_max(rounding * others.abs(), 0.5))
    of_second = labels == second[:, None]
    support = rows_of_class(bank, query, vote, target)
    rows = torch.cat([support.indices.flatten(), vote.neighbor_indices.flatten()]).unique()

    def spread(indices: Tensor, weights: Tensor) -> Tensor:
        """Weights of rows of the bank as weights of ``rows``, ``(B, len(rows))``."""
        columns = torch.searchsorted(rows, indices)
        return weights.new_zeros(len(indices), len(rows)).scatter_add_(1, columns, weights)

    def mean_of(members: Tensor) -> Tensor:
        """Equal weights for a subset of the neighbors, with a sum of one; zero weights for an empty subset."""
        count = members.sum(1, keepdim=True).clamp_min(1)
        return spread(vote.neighbor_indices, members.to(vote.similarities) / count)

    classes, runner_up = spread(support.indices, support.weights), mean_of(of_second)
    foils: dict[Foil | None, Tensor | None] = {
        None: None,
        "others": torch.cat([mean_of(~of_target), mean_of(~of_second)]),
        "runner-up": torch.cat([runner_up, classes]),
    }
    weights = torch.cat([classes, runner_up])
    embeddings = bank.embeddings[rows].float()
    scores_for = cache(
        lambda foil: SimilarityToSupport(
            model.tail, WeightedSupport(embeddings, weights, foils[foil]), model.similarity
        )
    )
    return scores_for, of_second.any(1)
