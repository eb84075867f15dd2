"""Explaining one batch of queries, with one method or several."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from captum_fam._training_mode import training_mode_in_words
from captum_fam.attr._layer_run import LayerRun
from captum_fam.attr.account import MAP, NOISE, REST, ZERO_EMBEDDING, Shares, mean_of_layers
from captum_fam.attr.base import SimilarityLayerAttribution
from captum_fam.attr.details import AttributionDetails, check_map, one_position_in_words
from captum_fam.attr.layer_similarity_shapley import EMPTY
from captum_fam.attr.registry import MapMethod
from captum_fam.functional import widen
from captum_fam.similarity import Cosine
from captum_fam.support import Comparison, SimilarityToSupport
from captum_fam.support.rows import BankRows

Value = TypeVar("Value")

_SAME_EMBEDDING = 1e-5
"""Relative distance up to which two embeddings are one: another batch size or processor rounds otherwise."""


@dataclass
class ExplainedBatch:
    """The result of a method for a batch of queries: the fields of an :class:`Explanation` with a value per query.

    Two more fields, ``has_own_embedding`` and ``foil_has_own_embedding``, say which queries have the embedding of their
    most similar support, of the explained class and of the foil. ``comparison`` is that of the batch.
    """

    attributions: Tensor
    scores: Tensor
    predicted: Tensor
    target: Tensor
    plain_scores: Tensor
    support_rows: Tensor
    support_similarities: Tensor
    support_weights: Tensor
    has_own_embedding: Tensor
    foil_has_own_embedding: Tensor
    comparison: Comparison | None
    contributions: Tensor | None = None
    convergence_delta: Tensor | None = None
    coverage: Tensor | None = None
    shares: Shares | None = None


_OF_THE_SCORE = (
    "scores",
    "predicted",
    "target",
    "plain_scores",
    "support_rows",
    "support_similarities",
    "support_weights",
    "has_own_embedding",
    "foil_has_own_embedding",
)
"""The fields that are the same for all methods."""


def explain_batch_by_all(
    methods: Sequence[MapMethod],
    attributions: Sequence[Any],
    scores: SimilarityToSupport,
    inputs: Tensor,
    target: Tensor | None,
    notes: Sequence[list[str]],
    *,
    embeds_supports: bool = False,
) -> list[ExplainedBatch]:
    """Explain a batch of queries with several methods, all of them for the same class and with the same scores.

    Args:
        methods: the entries of the methods in the registry.
        attributions: an object of each method, made with the scores.
        scores: as for :func:`explain_batch`.
        inputs: as for :func:`explain_batch`.
        target: as for :func:`explain_batch`.
        notes: for each method the list to which its warnings are added.
        embeds_supports: as for :func:`explain_batch`. Default: False.

    Returns:
        One batch per method, with the scores of the first.

    Raises:
        ValueError: as :func:`explain_batch`.
    """
    batches: list[ExplainedBatch] = []
    first, run = attributions[0], None
    if any(_takes_run_of(first, other) for other in attributions[1:]):
        run = first.run_model((inputs,), None, False, notes[0], keep_graph=True)
    for method, attribution, own_notes in zip(methods, attributions, notes, strict=True):
        # Another run of the model could round otherwise, and so decide for another of two equal classes.
        target = batches[0].target if batches else target
        batch = explain_batch(
            method,
            attribution,
            scores,
            inputs,
            target,
            own_notes,
            embeds_supports=embeds_supports,
            run=run if _takes_run_of(first, attribution) else None,
        )
        if batches:
            batch = replace(batch, **{name: getattr(batches[0], name) for name in _OF_THE_SCORE})
        batches.append(batch)
    return batches


def _takes_run_of(first: object, other: object) -> bool:
    """Whether a method can use a forward pass that was made for the first method."""
    if not (isinstance(first, SimilarityLayerAttribution) and isinstance(other, SimilarityLayerAttribution)):
        return False
    # What watches a forward pass needs one of its own.
    watches = any(type(one).watching is not SimilarityLayerAttribution.watching for one in (first, other))
    recorded = {"unit_norm": "auto", **first.recording()}
    needed = other.recording().items()
    has_all = all(name in recorded and recorded[name] == value for name, value in needed)
    return first.layers == other.layers and not watches and has_all


def explain_batch(
    method: MapMethod,
    attribution: Any,
    scores: SimilarityToSupport,
    inputs: Tensor,
    target: Tensor | None,
    notes: list[str],
    *,
    embeds_supports: bool = False,
    run: LayerRun | None = None,
) -> ExplainedBatch:
    """Compute maps, scores and the account of each map for a batch of queries.

    Args:
        method: the entry of the method in the registry.
        attribution: an object of the method, made with the scores and one or more layers.
        scores: the forward function of the attribution.
        inputs: queries ``(B, ...)``.
        target: the class of each query, ``(B,)``; None for the predicted classes.
        notes: the list to which warnings for the user are added.
        embeds_supports: whether the embeddings of the supports come from the model too. Default: False.
        run: a forward pass of the queries that has recorded what the method needs. Default: None, the method runs the
            model.

    Raises:
        ValueError: for attributions of more than one tensor, of the wrong shape, or with NaN or inf.
    """
    if isinstance(attribution, SimilarityLayerAttribution) and run is not None:
        notes += filter(None, [training_mode_in_words(attribution.model)])
        details = attribution.details_of(attribution.call_of_run(run, (inputs,), None, None, target, notes))
    elif isinstance(attribution, SimilarityLayerAttribution):
        # The methods of this package give maps and scores from one run of the model.
        details = attribution.noted_details(notes, inputs, target=target)
    else:
        details = _details_of(attribution, scores, inputs, target)
    comparison = details.comparison
    assert comparison is not None
    explained = ExplainedBatch(
        mean_of_layers([_check_attributions(maps, inputs) for maps in _per_layer(details.attributions)]),
        comparison.scores.detach(),
        comparison.predicted,
        comparison.target if target is None else target,
        comparison.plain_score.detach(),
        _rows_of(comparison),
        comparison.similarities.detach(),
        comparison.support_weights.detach(),
        _has_own_embedding(comparison, comparison.support_weights),
        _has_own_embedding(comparison, -comparison.support_weights),
        comparison,
    )
    if not isinstance(attribution, SimilarityLayerAttribution):
        notes += filter(None, [one_position_in_words(explained.attributions, inputs)])
    if details.contributions is not None:
        explained.contributions = details.contributions[0][0]
    if details.convergence_delta is not None:
        explained.convergence_delta = torch.stack(_per_layer(details.convergence_delta)).mean(0).detach()
    if details.coverage is not None and details.shares is not None:
        # Coverage is map sum divided by score. All layers explain the same score, so that the mean of the coverages is
        # the coverage of the mean map.
        explained.coverage = torch.stack(_per_layer(details.coverage)).mean(0)
        shares = _per_layer(details.shares)
        explained.shares = join_shares(shares, lambda parts: torch.stack(parts).mean(0))
        _split_off_zero_embedding(explained, comparison)
    _drop_noise(explained, method, comparison)
    length = comparison.query.shape[1]
    if embeds_supports and length == comparison.members.n_classes > 1:
        notes.append(
            f"the model gives {length} numbers, as many as the support has classes: are these class scores, and no "
            "embeddings? Pass the part of the model that gives the embedding, such as its backbone"
        )
    return explained


def _details_of(
    attribution: Any, scores: SimilarityToSupport, inputs: Tensor, target: Tensor | None
) -> AttributionDetails:
    """The details of a method of Captum, which returns maps and at most a convergence delta."""
    with torch.no_grad():
        # The method itself calls the scores, and warns.
        comparison = scores.compare_quietly(inputs, target=target)  # refuses a class without any support
    classes = comparison.predicted if target is None else target
    if getattr(attribution, "has_convergence_delta", bool)():
        maps, delta = attribution.attribute(inputs, target=classes, return_convergence_delta=True)
        return AttributionDetails(maps, comparison, convergence_delta=delta)
    return AttributionDetails(attribution.attribute(inputs, target=classes), comparison)


def _split_off_zero_embedding(explained: ExplainedBatch, comparison: Comparison) -> None:
    """Split the share that is there without any position into the score of the zero embedding and the rest.

    The explained score of a distance is relative to the score of the zero embedding, so that the shares must be too.
    """
    score_of_zero = (comparison.score - comparison.explained_score).detach()
    if explained.shares is not None and EMPTY in explained.shares and score_of_zero.any():
        empty = explained.shares[EMPTY] - score_of_zero
        explained.shares = {**explained.shares, EMPTY: empty, ZERO_EMBEDDING: score_of_zero}


def _drop_noise(explained: ExplainedBatch, method: MapMethod, comparison: Comparison) -> None:
    """Set maps that are only rounding noise to zero, and move their sums from the map to the rest in the account."""
    magnitude = comparison.magnitude.detach()
    maps = method.without_noise(explained.attributions, lambda: magnitude)
    removed = (explained.attributions - maps).flatten(1).sum(1)
    was_removed = explained.attributions.flatten(1).any(1) & ~maps.flatten(1).any(1)
    explained.attributions = maps
    if explained.convergence_delta is not None:
        explained.convergence_delta = explained.convergence_delta - removed
    if explained.coverage is not None and explained.shares is not None:
        shares = {**explained.shares, MAP: explained.shares[MAP] - removed, REST: explained.shares[REST] + removed}
        total = torch.stack([share for name, share in shares.items() if name != ZERO_EMBEDDING]).sum(0)
        explained.shares = shares
        explained.coverage = explained.coverage.masked_fill(was_removed, 0)
        # A score that is only noise has no meaningful shares.
        explained.coverage.masked_fill_(total.abs() <= NOISE * magnitude, torch.nan)


def _has_own_embedding(comparison: Comparison, weights: Tensor) -> Tensor:
    """Which queries have the embedding of their most similar support of a positive weight, boolean ``(B,)``."""
    counts = weights > 0
    nearest = comparison.similarities.masked_fill(~counts, -torch.inf).argmax(1)
    support, each = comparison.support, torch.arange(len(nearest), device=nearest.device)
    if isinstance(support, BankRows):
        last = support.indices.shape[1] - 1
        vectors = support.embeddings[support.indices[each, nearest.clamp_max(last)]]
        if support.shared is not None:  # the foil behind the rows
            shared = support.shared[(nearest - last - 1).clamp_min(0)].to(vectors.dtype)
            vectors = torch.where((nearest > last).unsqueeze(1), shared, vectors)
    else:
        vectors = support[nearest] if support.dim() == 2 else support[each, nearest]
    query, vectors = comparison.query.detach(), vectors.to(comparison.query.dtype)
    if isinstance(comparison.similarity, Cosine):  # a search engine may keep embeddings of length one
        query, vectors = (torch.nn.functional.normalize(part, dim=1) for part in (query, vectors))
    lengths = query.norm(dim=1)
    return ((query - vectors).norm(dim=1) <= _SAME_EMBEDDING * lengths) & (lengths > 0) & counts.any(1)


def _check_attributions(attributions: object, inputs: Tensor) -> Tensor:
    """The maps ``(B, N, *spatial)`` of a method summed over their channels, ``(B, 1, *spatial)``."""
    maps = check_map(attributions, inputs)
    if not maps.isfinite().all():
        raise ValueError("method: its attributions contain NaN or inf")
    return widen(maps.detach()).sum(1, keepdim=True)


def _rows_of(comparison: Comparison) -> Tensor:
    """The position of each support in the whole support, ``(B, K)``; -1 for a foil behind the rows of a bank."""
    like = comparison.similarities
    if isinstance(comparison.support, BankRows):
        rows = comparison.support.indices
        return torch.nn.functional.pad(rows, (0, like.shape[1] - rows.shape[1]), value=-1)
    return torch.arange(like.shape[1], device=like.device).expand(like.shape)


_FILLING = {"support_rows": -1, "support_similarities": torch.nan, "support_weights": 0}
"""What fills up the supports of a query that has fewer than other queries, by the name of the field."""


def join_batches(batches: Sequence[ExplainedBatch]) -> dict[str, Any]:
    """Join batches of queries.

    Args:
        batches: at least one batch.

    Returns:
        The fields of :class:`ExplainedBatch` by name, except ``comparison``, with a value per query of all batches. The
        supports of a query that has fewer supports than another are filled up: with row -1, similarity NaN and weight
        0.
    """
    joined: dict[str, Any] = {"shares": join_shares([batch.shares for batch in batches], torch.cat)}
    most = max(batch.support_rows.shape[1] for batch in batches)
    for name in (field.name for field in fields(ExplainedBatch) if field.name not in ("shares", "comparison")):
        parts = [part for batch in batches if (part := getattr(batch, name)) is not None]
        if name in _FILLING:
            value = _FILLING[name]
            parts = [torch.nn.functional.pad(part, (0, most - part.shape[1]), value=value) for part in parts]
        joined[name] = torch.cat(parts) if parts else None
    return joined


def join_shares(accounts: Sequence[Shares | None], join: Callable[[list[Tensor]], Tensor]) -> Shares | None:
    """Join the shares of several accounts by name.

    Args:
        accounts: the shares of each account; None for an account that a method does not give.
        join: joins the values of one share, such as ``torch.cat`` or a mean. An account without a share of this name
            adds zeros.

    Returns:
        The joined shares, the rest last; None if there is no account.

    Example:
        >>> first, second = torch.tensor([0.5]), torch.tensor([0.1])
        >>> join_shares([{"map": first}, {"map": first, "bias": second}], torch.cat)
        {'map': tensor([0.5000, 0.5000]), 'bias': tensor([0.0000, 0.1000])}
    """
    known = [account for account in accounts if account is not None]
    names = dict.fromkeys(name for account in known for name in account)
    order = [name for name in names if name != REST] + [name for name in names if name == REST]
    zeros = [torch.zeros_like(account[MAP]) for account in known]
    joined = {
        name: join([account.get(name, zero) for account, zero in zip(known, zeros, strict=True)]) for name in order
    }
    return joined or None


def _per_layer(values: Value | list[Value]) -> list[Value]:
    """One value per layer: methods return a list for a list of layers, and the value alone for a single layer."""
    return values if isinstance(values, list) else [values]
