"""Explaining one batch of queries with one method."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from captum_fam.attr.account import MAP, NOISE, REST, ZERO_EMBEDDING, Shares, mean_of_layers
from captum_fam.attr.base import SimilarityLayerAttribution
from captum_fam.attr.details import AttributionDetails
from captum_fam.attr.layer_similarity_shapley import EMPTY
from captum_fam.attr.registry import MapMethod
from captum_fam.functional import widen
from captum_fam.support import Comparison, SimilarityToSupport

Value = TypeVar("Value")


@dataclass
class ExplainedBatch:
    """What a method gave for some of the queries: the fields of an :class:`Explanation` with a row per query."""

    attributions: Tensor
    scores: Tensor
    predicted: Tensor
    target: Tensor
    contributions: Tensor | None = None
    convergence_delta: Tensor | None = None
    coverage: Tensor | None = None
    shares: Shares | None = None


def explain_batch(
    method: MapMethod,
    attribution: Any,
    scores: SimilarityToSupport,
    inputs: Tensor,
    target: Tensor | None,
    notes: list[str],
) -> ExplainedBatch:
    """Maps, scores and accounts of a batch.

    Args:
        method: what the attribution is an object of.
        attribution: made with the scores and a layer.
        scores: the forward function.
        inputs: queries ``(B, ...)``.
        target: classes ``(B,)``; None: the predicted ones.
        notes: what the user is to be warned of is added.

    Raises:
        ValueError: for attributions of more than one tensor, of the wrong shape, or with NaN or inf.
    """
    if isinstance(attribution, SimilarityLayerAttribution):
        # One run of the model gives map and scores.
        details = attribution.noted_details(notes, inputs, target=target)
    else:
        details = _details_of(attribution, scores, inputs, target)
    comparison = details.comparison
    assert comparison is not None
    explained = ExplainedBatch(
        mean_of_layers([_check_attributions(one, inputs) for one in _listed(details.attributions)]),
        comparison.scores.detach(),
        comparison.predicted,
        comparison.target if target is None else target,
    )
    if details.contributions is not None:
        explained.contributions = details.contributions[0][0]
    if details.convergence_delta is not None:
        explained.convergence_delta = torch.stack(_listed(details.convergence_delta)).mean(0).detach()
    if details.coverage is not None and details.shares is not None:
        # Of layers the mean: all explain the same score, so that the mean of the quotients is that of the mean.
        explained.coverage = torch.stack(_listed(details.coverage)).mean(0)
        shares = _listed(details.shares)
        explained.shares = join_shares(shares, lambda parts: torch.stack(parts).mean(0))
        _count_from_zero(explained, comparison)
    _drop_noise(explained, method, comparison)
    return explained


def _details_of(
    attribution: Any, scores: SimilarityToSupport, inputs: Tensor, target: Tensor | None
) -> AttributionDetails:
    """The details that a method of Captum does not give itself."""
    with torch.no_grad():
        comparison = scores.compare(inputs)
    target = comparison.predicted if target is None else target
    if getattr(attribution, "has_convergence_delta", bool)():
        maps, delta = attribution.attribute(inputs, target=target, return_convergence_delta=True)
        return AttributionDetails(maps, comparison, convergence_delta=delta)
    return AttributionDetails(attribution.attribute(inputs, target=target), comparison)


def _count_from_zero(explained: ExplainedBatch, comparison: Comparison) -> None:
    """What is there without any position counts from the zero embedding, as the explained score does."""
    start = (comparison.score - comparison.explained_score).detach()
    if explained.shares is not None and EMPTY in explained.shares and start.any():
        empty = explained.shares[EMPTY] - start
        explained.shares = {**explained.shares, EMPTY: empty, ZERO_EMBEDDING: start}


def _drop_noise(explained: ExplainedBatch, method: MapMethod, comparison: Comparison) -> None:
    """Set maps that are only rounding noise to zero; what they lose has no place in their account either."""
    magnitude = comparison.magnitude.detach()
    maps = method.without_noise(explained.attributions, lambda: magnitude)
    lost = (explained.attributions - maps).flatten(1).sum(1)
    was_lost = explained.attributions.flatten(1).any(1) & ~maps.flatten(1).any(1)
    explained.attributions = maps
    if explained.convergence_delta is not None:
        explained.convergence_delta = explained.convergence_delta - lost
    if explained.coverage is not None and explained.shares is not None:
        shares = {**explained.shares, MAP: explained.shares[MAP] - lost, REST: explained.shares[REST] + lost}
        total = torch.stack([share for name, share in shares.items() if name != ZERO_EMBEDDING]).sum(0)
        explained.shares = shares
        explained.coverage = explained.coverage.masked_fill(was_lost, 0)
        # Nothing is a share of a score that is noise itself.
        explained.coverage.masked_fill_(total.abs() <= NOISE * magnitude, torch.nan)


def _check_attributions(attributions: object, inputs: Tensor) -> Tensor:
    if not isinstance(attributions, Tensor):
        raise ValueError(f"layer: the method gave a {type(attributions).__name__}; choose a layer of one tensor")
    if attributions.dim() != inputs.dim() or len(attributions) != len(inputs):
        raise ValueError(
            f"method: its attributions have shape {tuple(attributions.shape)}, expected (B, N, *spatial) for inputs of "
            f"{tuple(inputs.shape)}; a layer of tokens needs a method that takes token_grid"
        )
    if not attributions.isfinite().all():
        raise ValueError("method: its attributions contain NaN or inf")
    return widen(attributions.detach()).sum(1, keepdim=True)


def join_shares(accounts: Sequence[Shares | None], join: Callable[[list[Tensor]], Tensor]) -> Shares | None:
    """The parts of several accounts, joined by name; a part that an account does not have is zero there."""
    known = [account for account in accounts if account is not None]
    names = dict.fromkeys(name for account in known for name in account)
    order = [name for name in names if name != REST] + [name for name in names if name == REST]
    zeros = [torch.zeros_like(account[MAP]) for account in known]
    return {
        name: join([account.get(name, zero) for account, zero in zip(known, zeros, strict=True)]) for name in order
    } or None


def _listed(of_layers: Value | list[Value]) -> list[Value]:
    """What there is of each layer, where one layer stands alone too."""
    return of_layers if isinstance(of_layers, list) else [of_layers]
