"""Explaining pairs of images in one call."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from captum.attr import LayerAttribution
from torch import Tensor

from captum_fam._training_mode import buffers_kept
from captum_fam._warnings import collected_notes
from captum_fam.attr.account import bias_in_words, coverage_in_words, missing_part
from captum_fam.embedding.forward import device_of
from captum_fam.explanation.batch import join_shares
from captum_fam.explanation.pairs.own_images import foils_of_set, rows_by_image, without_only_rows
from captum_fam.explanation.pairs.pair import Pair
from captum_fam.explanation.pairs.pair_runs import PairRuns
from captum_fam.explanation.pairs.pair_sides import ExplainedPairs, PairFoil, PairGallery, PairLinks
from captum_fam.explanation.pairs.pairs_of_queries import make_pair
from captum_fam.explanation.reading.arguments import INTERPOLATION, check_at_least, misfits_named
from captum_fam.explanation.reading.compared import read_foil
from captum_fam.explanation.reading.layers import LayerLike, choose_layers
from captum_fam.explanation.reading.methods import (
    MethodsLike,
    check_options,
    choose_methods,
    options_in_words,
    read_methods,
)
from captum_fam.explanation.reading.model import ModelLike, PreprocessingLike, read_model
from captum_fam.explanation.reading.pair_images import PairImages, read_pair_images
from captum_fam.explanation.reading.queries import Inputs
from captum_fam.explanation.reading.supports import ONE_CLASS, SupportLike, SupportReader, float_type_of
from captum_fam.explanation.reading.thumbnails import ListPictures
from captum_fam.explanation.result import Explanation
from captum_fam.functional import check_window
from captum_fam.similarity import SimilarityLike, get_similarity
from captum_fam.support import Against, FoilLike, Gallery, SupportSet
from captum_fam.support.threshold import check_against, check_in_range

if TYPE_CHECKING:
    from PIL.Image import Image

FEWEST_OTHERS = 8
"""How many other images a call must have, so that their mean similarity is the foil of a pair."""


def explain_pairs(
    model: ModelLike,
    left: Inputs,
    right: Inputs,
    *,
    layer: LayerLike | None = None,
    method: MethodsLike = None,
    similarity: SimilarityLike | None = None,
    foil: FoilLike | SupportLike | None = "gallery",
    gallery: SupportLike | None = None,
    against: Against | None = None,
    threshold: float | None = None,
    smooth: int = 1,
    images: tuple[Any, Any] | None = None,
    names: Sequence[str] | None = None,
    batch_size: int = 32,
    preprocess: PreprocessingLike | Callable[[Image], Tensor] | None = None,
    output: Any = None,
    top_matches: int = 16,
    **method_kwargs: Any,
) -> Explanation:
    """Explain why the two images of each pair are similar, or why they are not, with a map of both images.

    A pair asks "why more similar than the average image": its default contrast is the mean similarity to a gallery. For
    "why not the same", take ``against="threshold"`` with the threshold of the decision: the map sums to the similarity
    minus the threshold, and its negative values show what one image has and the other lacks. The side of the left image
    explains s(left, right), the side of the right image s(right, left), each minus the contrast of its own image.

    Each different image goes through the model once: a file that is named in several pairs, or an equal tensor, on
    either side. There are two exceptions. Where the other images are the gallery and FAM stands beside, more different
    images than ``batch_size`` go through the model twice, because the mean over the gallery has to be known before the
    maps: a larger ``batch_size`` avoids the second pass and needs more memory. And methods of Captum, and methods that
    compare positions of images, run the model for each side of each pair.

    Args:
        model: as for :func:`~captum_fam.explain`.
        left: B images, as inputs of the model or as pictures, as the queries of :func:`~captum_fam.explain`.
        right: B images; pair i is ``(left[i], right[i])``. They may have another size than the left ones.
        layer: the layer whose maps are made: one module or its dotted name. Default: None, as for
            :func:`~captum_fam.explain`.
        method: as for :func:`~captum_fam.explain`. Default: None, ``"similarity-cam"``, whose maps add up to the score
            and which finds the positions that match, with the published ``"fam"`` beside it.
        similarity: a name, a :class:`~captum_fam.similarity.Similarity` or a callable metric. Default: None, that of
            the model, else the cosine.
        foil: ``"gallery"``; or images, pictures, embeddings or a :class:`~captum_fam.SupportSet`, whose mean similarity
            is subtracted, on each side without the image of this side; or None for no foil. Default: ``"gallery"``;
            without a gallery that is large enough there is no foil, and a note says so.
        gallery: the gallery of ``foil="gallery"``, as for :func:`~captum_fam.explain`. Where it holds images, those of
            a pair itself are left out for the pair. Default: None, all other images of the call, if they are at least
            eight.
        against: ``"threshold"`` or ``"identity"``, as for :func:`~captum_fam.explain`, in the place of the foil.
            Default: None.
        threshold: the threshold of ``against="threshold"``, in the unit of the similarity. Default: None.
        smooth: the side of a mean filter over the maps of both images, as for :func:`~captum_fam.explain`. Default: 1,
            no filter.
        images: the left and the right images for display, two sequences. Default: None, the pictures; for tensors the
            inputs, each scaled to [0, 1] by its smallest and largest value.
        names: names of the pairs, which become file names. Default: None, the names of both files, as in
            ``"wren - jay"``.
        batch_size: how many images go through the model at once. Default: 32.
        preprocess: as for :func:`~captum_fam.explain`. Default: None.
        output: as for :func:`~captum_fam.explain`. Default: None.
        top_matches: how many matches of positions each pair lists, as for :func:`~captum_fam.explain`, with their cost;
            0 leaves them out. Default: 16.
        **method_kwargs: further arguments of the constructors of the methods; each method gets those that it takes.

    Returns:
        One query per pair: its maps are those of the left images, and ``pairs[i][0]`` is the
        :class:`~captum_fam.explanation.pairs.pair.Pair` with both maps and the positions that match.

    Raises:
        ValueError, TypeError: for arguments that do not fit; the message names the argument.
        UnreadableImageError: (a ``ValueError``) for a picture that cannot be read.

    Example:
        >>> from captum_fam.explanation.pairs.one_call_for_pairs import explain_pairs
        >>> why = explain_pairs(model, queries, images, layer="layer4")
        >>> why
        Explanation(8 queries, similarity-cam, beside: fam, layer 'layer4', foil gallery)
        >>> pair = why.pairs[0][0]
        >>> pair.query_map.shape, pair.support_map.shape, len(pair.matches)
        (torch.Size([7, 7]), torch.Size([7, 7]), 16)
    """
    batch_size = check_at_least("batch_size", batch_size, 1)
    top_matches = check_at_least("top_matches", top_matches, 0)
    smooth = check_window("smooth", smooth)
    tau = check_against(against, threshold)
    named = read_methods(method)
    net = read_model(model, preprocess, output)
    device, dtype = device_of(net.forward_func), float_type_of(net.forward_func)
    with collected_notes(1) as notes, buffers_kept(net.forward_func):
        read = read_pair_images(left, right, net.preprocessing, batch_size, device, dtype, images, names)
        measure = get_similarity(next(one for one in (similarity, net.similarity, "cosine") if one is not None))
        check_in_range(tau, measure)
        chosen = choose_methods(named, measure, layer)
        check_options(chosen.methods, method_kwargs, "explain_pairs")
        first = read.distinct.inputs[read.left[0]][None]
        with misfits_named(read.placed, dtype):
            layers = choose_layers(net, layer, chosen.methods, first, measures_grid="token_grid" not in method_kwargs)
        grid = {} if layers.token_grid is None else {"token_grid": layers.token_grid}
        options = {**grid, **method_kwargs}
        reader = SupportReader(net.forward_func, net.preprocessing, batch_size, device, False)
        if chosen.needs_images and _is_default(foil, gallery):
            foil = None  # these methods compare the positions of the two images, and no others
        foils, others = _contrast(read, reader, foil, gallery, against, notes)
        links = PairLinks(
            read.distinct, list(zip(read.left, read.right, strict=True)), foils, others, against, threshold
        )
        if links.has_contrast and chosen.needs_images:
            raise ValueError(
                "foil: a method that compares positions shows the positions of the pair itself; pass foil=None, and "
                "neither gallery nor against"
            )
        of_methods: list[list[str]] = [[] for _ in chosen.methods]
        runs = PairRuns(net, layers, chosen.methods, options, measure, batch_size, of_methods, top_matches, smooth)
        with misfits_named(read.placed, dtype):
            found = runs.explain(links)
        of_pairs = [_pairs_of(read, found, number) for number in range(len(chosen.methods))]
        for pairs_of_method, own_notes in zip(of_pairs, of_methods, strict=True):
            own_notes += _low_coverage(read, pairs_of_method)
        net.tell(notes)
        notes += [] if chosen.note is None else [chosen.note]
        notes += [note for of_method in of_methods[: chosen.n_asked] for note in of_method]
        about = {
            "model": net.name,
            "preprocessing": net.used_preprocessing(),
            "layer": layers.name,
            "similarity": repr(measure),
            "foil": _foil_in_words(links),
            "against": against,
            "threshold": threshold,
            "aggregate": "mean",
            "smooth": smooth,
            "supports": {ONE_CLASS: 1},
            "top_matches": top_matches,
        }
        explained = [
            _explanation(
                read,
                of_pairs[number],
                method=one.name,
                support_blind=one.support_blind,
                notes=tuple(dict.fromkeys([*net.told, *notes, *of_methods[number]])),
                about={**about, "options": options_in_words(one, options)},
            )
            for number, one in enumerate(chosen.methods)
        ]
        return replace(explained[0], beside=tuple(explained[1:]))


def _is_default(foil: Any, gallery: Any) -> bool:
    """Whether the foil is the default: the other images of the call."""
    return isinstance(foil, str) and foil == "gallery" and gallery is None


def _contrast(
    read: PairImages, reader: SupportReader, foil: Any, gallery: Any, against: Against | None, notes: list[str]
) -> tuple[Sequence[tuple[PairFoil, PairFoil]], PairGallery | Literal["others"] | None]:
    """The fields ``foils`` and ``gallery`` of :class:`PairLinks`, of which one at most has something."""
    is_default = _is_default(foil, gallery)
    if against is not None and not is_default and (foil is not None or gallery is not None):
        raise ValueError(f"against={against!r} and a foil exclude each other; leave one of them out")
    if against is not None or (foil is None and gallery is None):
        return (), None
    if is_default:
        n_others = max(len(read.distinct) - 2, 0)
        if n_others >= FEWEST_OTHERS:
            return (), "others"
        notes.append(
            f"no foil: the call has {n_others} other images for a gallery, fewer than {FEWEST_OTHERS}, so that maps "
            "explain the similarity itself. Pass gallery=, other images, to see why a pair is more similar than the "
            "average image; or foil=None"
        )
        return (), None
    if isinstance(foil, str) and foil != "gallery":
        raise ValueError(
            f'foil must be "gallery", images or embeddings to contrast with, or None, got {foil!r}: a pair has no '
            "other classes"
        )
    made, ids, _ = read_foil(reader, foil, gallery)
    if isinstance(made, Gallery):
        own_rows = _own_rows(read, ids, made)
        n_found = sum(map(bool, own_rows))
        if n_found:
            notes.append(
                f"{n_found} of {len(read)} pairs have an image in the gallery, as the same image; there it is left out "
                "for the pair"
            )
        return (), PairGallery(made.embed(reader.model), own_rows)
    assert isinstance(made, SupportSet)
    by_image = rows_by_image(made, ids)
    own, found = without_only_rows(made, [by_image.get(one, []) for one in read.distinct.ids], "images of the pairs")
    notes += found
    of_images = foils_of_set(made.embed(reader.model), own)
    return [(of_images[one], of_images[other]) for one, other in zip(read.left, read.right, strict=True)], None


def _own_rows(read: PairImages, ids: Any, gallery: Gallery) -> list[list[int]]:
    """For each pair the rows of a gallery that are its own images, by equal inputs of the model."""
    rows = rows_by_image(gallery, ids)
    own = [rows.get(one, []) for one in read.distinct.ids]
    return [sorted({*own[one], *own[other]}) for one, other in zip(read.left, read.right, strict=True)]


def _foil_in_words(links: PairLinks) -> str | None:
    """The foil, for the manifest."""
    if links.gallery is not None:
        return "gallery"
    foil = links.foils[0][0] if links.foils else None
    count = 0 if foil is None else len(foil.weights)
    return f"{count} support{'s' * (count != 1)}" if count else None


def _pairs_of(read: PairImages, found: ExplainedPairs, method: int) -> list[Pair]:
    """The pairs by one method."""
    supports = zip(read.right_names, read.right_shown, strict=True)
    return [
        make_pair(found, method, number, row=0, name=name, label=ONE_CLASS, weight=1.0, image=shown)
        for number, (name, shown) in enumerate(supports)
    ]


def _low_coverage(read: PairImages, pairs: Sequence[Pair]) -> list[str]:
    """A note for the map that explains least of its score, if it leaves more than half unexplained."""
    missing: list[tuple[float, str, float, Mapping[str, float]]] = []
    for name, pair in zip(read.names, pairs, strict=True):
        sides = (
            ("left", pair.query_coverage, pair.query_shares),
            ("right", pair.support_coverage, pair.support_shares),
        )
        for side, coverage, shares in sides:
            if coverage is not None and shares is not None:
                tensors = {part: torch.tensor(share, dtype=torch.float64) for part, share in shares.items()}
                part_missing = float(missing_part(tensors, torch.tensor(abs(pair.similarity), dtype=torch.float64)))
                missing.append((part_missing, f"{side} image of {name}", coverage, shares))
    worst = max(missing, key=lambda one: one[0], default=None)
    if worst is None or worst[0] <= 0.5:
        return []
    _, image, coverage, shares = worst
    advice = bias_in_words(shares) or (
        "Choose an earlier layer, or a module that contains this layer: find_layer measures which layers explain more"
    )
    return [f"the map of the {image} {coverage_in_words(coverage, shares)}. {advice}"]


def _explanation(read: PairImages, pairs: Sequence[Pair], **known: Any) -> Explanation:
    """The explanation by one method, with one query per pair."""
    attributions = torch.stack([pair.query_map for pair in pairs]).unsqueeze(1)
    like, count = read.distinct.inputs[read.left[0]], len(pairs)
    similarities = attributions.new_tensor([[pair.similarity] for pair in pairs])
    zeros = torch.zeros(count, dtype=torch.long, device=attributions.device)
    coverages = [pair.query_coverage for pair in pairs if pair.query_coverage is not None]
    accounts = [
        {name: attributions.new_tensor([share]) for name, share in pair.query_shares.items()}
        for pair in pairs
        if pair.query_shares is not None
    ]
    return Explanation(
        maps=LayerAttribution.interpolate(attributions, like.shape[1:], INTERPOLATION[like.dim() + 1]),
        attributions=attributions,
        scores=attributions.new_tensor([[pair.score] for pair in pairs]),
        plain_scores=similarities[:, 0],
        predicted=zeros,
        target=zeros,
        class_names=(ONE_CLASS,),
        names=read.names,
        images=list(read.left_shown),
        coverage=attributions.new_tensor(coverages) if coverages else None,
        shares=join_shares(accounts, torch.cat),
        support_rows=zeros.unsqueeze(1),
        support_similarities=similarities,
        support_weights=torch.ones_like(similarities),
        support_pictures=ListPictures([[pair.image] for pair in pairs]),
        pairs=tuple((pair,) for pair in pairs),
        **known,
    )
