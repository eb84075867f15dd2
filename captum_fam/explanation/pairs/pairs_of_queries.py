"""The pairs of an explanation: each query with its first supports."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from captum_fam.embedding.forward import device_of
from captum_fam.explanation.pairs.own_images import SharedContrast
from captum_fam.explanation.pairs.pair import Pair
from captum_fam.explanation.pairs.pair_runs import PairRuns
from captum_fam.explanation.pairs.pair_sides import ExplainedPairs, PairLinks, foils_of
from captum_fam.explanation.reading.arguments import for_display
from captum_fam.explanation.reading.pair_images import DistinctImages
from captum_fam.explanation.reading.support_images import SupportImages, SupportNames
from captum_fam.explanation.reading.supports import float_type_of
from captum_fam.support import Against, Comparison, Support

if TYPE_CHECKING:
    from captum_fam.explanation.result import Explanation

_MOST_MUTUAL = 12
"""How many matches a pair keeps whose positions are each other's best."""

_OTHER_IMAGE = 1e-3
"""Difference of two similarities, relative to their size, above which they are not those of the same two images."""


def make_pairs(
    explanation: Explanation,
    comparisons: Sequence[Comparison],
    queries: Tensor,
    support: Support,
    *,
    runs: PairRuns,
    top: int,
    contrast: SharedContrast,
    names: SupportNames = None,
    against: Against | None = None,
    threshold: float | None = None,
) -> list[tuple[tuple[Pair, ...], ...]]:
    """Make the maps of both sides for each query and its first supports.

    The supports of a query are those of the explained class with the largest part in its score, weight x similarity;
    for :class:`~captum_fam.Neighbors` they are the first hits. The side of the query explains its similarity to one
    support, minus what the score of the query is contrasted with; the side of the support has the same contrast, with
    the roles exchanged: as the query is left out of its gallery, or of its foil of images, so is the support on its own
    side. Methods that compare positions of images show the two images without the contrast. Each different image goes
    through the model once, besides the runs that made the explanation;
    :class:`~captum_fam.explanation.pairs.pair_runs.PairRuns` has the exceptions.

    Args:
        explanation: the explanation by the first method, whose classes, weights and pictures of supports are used.
        comparisons: the comparison of each batch of queries with the support, in the order of the queries.
        queries: inputs of the model, ``(B, ...)``.
        support: the whole support, which must have images.
        runs: runs the images, and makes the maps of both sides. The notes of its first method get those that concern
            all methods.
        top: how many supports each query gets.
        contrast: what all queries are contrasted with, before anything is left out.
        names: the names of the files of the supports, by row, or by query and row; None where they are no files.
            Default: None.
        against: what the scores are compared with, as for :class:`~captum_fam.SimilarityToSupport`. Default: None.
        threshold: the threshold. Default: None.

    Returns:
        For each method, for each query, the pairs with its first supports.

    Raises:
        ValueError: for a support without images, for prototypes, or a list of layers.
        UnreadableImageError: for the image of a hit that cannot be read.
    """
    if explanation.about.get("aggregate") == "prototype":
        raise ValueError('sides="both" compares images, and a prototype is none; use aggregate="mean"')
    model = runs.model
    device, dtype = device_of(model.forward_func), float_type_of(model.forward_func)
    images = SupportImages(support, model.preprocessing, device, dtype, names)
    foils = [foil for comparison in comparisons for foil in foils_of(comparison)]
    distinct, links, entries = DistinctImages(), [], []
    n_missing = 0
    for query, inputs in enumerate(queries):
        for column in _first_supports(explanation, images, query, top):
            row = int(explanation.support_rows[query, column])  # type: ignore[index]  # the columns are its own
            image = images.of(query, row)
            if image is None:
                n_missing += 1
                continue
            links.append((distinct.add(inputs), distinct.add(image)))
            entries.append((query, column, row))
    if n_missing:
        runs.notes[0].append(f"{n_missing} supports have no image, so that they have no map")
    if not links:
        return [((),) * len(queries) for _ in runs.methods]
    of_pairs = [(foils[query], foils[query]) for query, _, _ in entries]
    if any(foil is not None for foil in foils):
        of_supports = contrast.foils_of_supports(
            [(query, row) for query, _, row in entries],
            [distinct.inputs[partner] for _, partner in links],
            foils,
            comparisons,
            model.forward_func,
            runs.notes[0],
        )
        of_pairs = [(own, other) for (own, _), other in zip(of_pairs, of_supports, strict=True)]
    found = runs.explain(PairLinks(distinct, links, of_pairs, against=against, threshold=threshold))
    _note_other_images(explanation, found, entries, runs.notes[0])
    # Made once for all methods: the picture of a hit is read from its file.
    supports = []
    for (query, column, row), (_, inputs) in zip(entries, links, strict=True):
        label = images.label(query, row, explanation.class_names, int(explanation.target[query]))
        pictures = [] if explanation.support_pictures is None else explanation.support_pictures(query, row)
        supports.append(
            {
                "row": row,
                "name": images.name(query, row, label),
                "label": label,
                "weight": float(explanation.support_weights[query, column]),  # type: ignore[index]
                "image": pictures[0] if pictures else for_display(distinct.inputs[inputs][None])[0],
            }
        )
    made: list[tuple[tuple[Pair, ...], ...]] = []
    for method in range(len(runs.methods)):
        of_queries: list[list[Pair]] = [[] for _ in queries]
        for number, ((query, _, _), support_of_pair) in enumerate(zip(entries, supports, strict=True)):
            of_queries[query].append(make_pair(found, method, number, **support_of_pair))
        made.append(tuple(map(tuple, of_queries)))
    return made


def make_pair(found: ExplainedPairs, method: int, number: int, **known: Any) -> Pair:
    """Put one pair together.

    Args:
        found: all pairs.
        method: the number of the method.
        number: the number of the pair.
        **known: the fields of the pair that are no result: row, name, label, weight and image.
    """
    query, plain_query = found.side(method, number, 0)
    support, plain_support = found.side(method, number, 1)
    decomposition = found.decompositions[number] if method == found.exact and found.decompositions else None
    return Pair(
        **known,
        similarity=float(found.similarities[number]),
        score=float(found.scores[number, 0]),
        support_score=float(found.scores[number, 1]),
        query_map=query.map,
        support_map=support.map,
        plain_query_map=plain_query.map,
        plain_support_map=plain_support.map,
        query_coverage=query.coverage,
        support_coverage=support.coverage,
        query_shares=query.shares,
        support_shares=support.shares,
        matches=() if decomposition is None else tuple(decomposition.top_matches(found.top_matches)),
        mutual_matches=() if decomposition is None else tuple(decomposition.top_matches(_MOST_MUTUAL, mutual=True)),
        decomposition=decomposition,
    )


def _first_supports(explanation: Explanation, images: SupportImages, query: int, top: int) -> list[int]:
    """The columns of the first supports of a query in the fields of the explanation."""
    rows, weights, similarities = (
        values[query].tolist()  # type: ignore[index]
        for values in (explanation.support_rows, explanation.support_weights, explanation.support_similarities)
    )
    if images.are_hits:
        return [column for column, row in enumerate(rows) if images.is_hit(query, row)][:top]
    columns = [column for column, row in enumerate(rows) if row >= 0 and weights[column] > 0]
    return sorted(columns, key=lambda column: (-weights[column] * similarities[column], rows[column]))[:top]


def _note_other_images(
    explanation: Explanation, found: ExplainedPairs, entries: Sequence[tuple[int, int, int]], notes: list[str]
) -> None:
    """Add a note where the image of a support does not have the embedding that the query was compared with."""
    expected = [float(explanation.support_similarities[query, column]) for query, column, _ in entries]  # type: ignore[index]
    pairs = list(zip(found.similarities.tolist(), expected, strict=True))
    differ = [pair for pair in pairs if abs(pair[0] - pair[1]) > _OTHER_IMAGE * max(1.0, abs(pair[1]))]
    if differ:
        notes.append(
            f"the images of {len(differ)} of {len(pairs)} supports have another similarity to their query than the "
            f"embeddings that the query was compared with, such as {differ[0][0]:.4g} for {differ[0][1]:.4g}: are the "
            "images, the model and the preprocessing those of the embeddings? The maps of pairs explain the images"
        )
