"""Explaining queries in one call: maps, scores and channel contributions as a result that can be drawn and saved."""

from __future__ import annotations

import inspect
import json
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
import torch
from captum.attr import LayerAttribution
from torch import Tensor, nn

from captum_fam._files import MANIFEST, staged
from captum_fam.attr import LayerCorrespondence, LayerFAM, LayerSimilarityCAM, LayerSimilarityShapley
from captum_fam.attr._base import resolve_layer
from captum_fam.attr.account import (
    MAP,
    NOISE,
    REST,
    ZERO_EMBEDDING,
    Shares,
    coverage_in_words,
    mean_of_layers,
    number_in_words,
    score_in_words,
)
from captum_fam.attr.baselines import SupportBlindAttribution
from captum_fam.attr.layer_fam import FAMDetails
from captum_fam.attr.layer_search import find_layer
from captum_fam.attr.layer_similarity_cam import SimilarityCAMDetails
from captum_fam.attr.layer_similarity_shapley import EMPTY, SimilarityShapleyDetails
from captum_fam.attr.registry import Method, get_method, magnitude_of_scores, without_noise
from captum_fam.functional import widen
from captum_fam.similarity import SimilarityLike
from captum_fam.support import Aggregate, SimilarityToSupport, SupportSet

if TYPE_CHECKING:
    from PIL.Image import Image

    from captum_fam.visualization import ImageLike, MapFigure

One = TypeVar("One")

_INTERPOLATION = {3: "linear", 4: "bilinear", 5: "trilinear"}

NO_ACCOUNT = "no account of the score"
"""What is said of a map whose sum is no part of the score."""


@dataclass(frozen=True, eq=False)
class Explanation:
    """Why each query of a batch matched its class.

    Attributes:
        method: the name of the method.
        maps: the attributions at the inputs' size, bilinear, not normalized, ``(B, 1, H, W)``.
        attributions: as the method gave them at the layer, ``(B, 1, h, w)``; exactly zero where there was nothing but
            rounding noise (:func:`~captum_fam.attr.registry.without_noise`).
        scores: of every class, less its foil where there is one, ``(B, C)``.
        predicted: the class of the largest score, ``(B,)``.
        target: the explained class, ``(B,)``.
        class_names: C names.
        names: B names, of the queries.
        images: B images in [0, 1], for overlays; of any sizes.
        contributions: what each channel of the layer adds to the similarity, before any normalization, ``(B, N)``;
            None for methods without.
        convergence_delta: the map's sum less the explained score, ``(B,)``, of ``"shapley"`` less the part of it that
            is not there without any position; None for methods without.
        coverage: the map's sum over the explained score, ``(B,)``, NaN where that is zero; None for methods that give
            no account of the score, as all but ``"similarity-cam"`` and ``"shapley"``.
        shares: named parts that add up to the score, each ``(B,)``, of methods with a coverage: ``"map"``, ``"class
            token"``, ``"bias"``, ..., ``"rest"``. A distance starts from the score of the zero embedding, the part
            ``"zero embedding"``: the explained score is the others.
        support_blind: whether the method knows neither support nor foil, as baselines.
        about: model, layer, similarity, foil and options, for the manifest.
    """

    method: str
    maps: Tensor
    attributions: Tensor
    scores: Tensor
    predicted: Tensor
    target: Tensor
    class_names: tuple[str, ...]
    names: tuple[str, ...]
    images: Sequence[ImageLike] | Tensor
    contributions: Tensor | None = None
    convergence_delta: Tensor | None = None
    coverage: Tensor | None = None
    shares: Mapping[str, Tensor] | None = None
    support_blind: bool = False
    about: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.maps)

    @property
    def target_scores(self) -> Tensor:
        """The score of the target class, less its foil, ``(B,)``."""
        return self.scores.gather(1, self.target.unsqueeze(1)).squeeze(1)

    @property
    def flat(self) -> Tensor:
        """Which maps are the same everywhere, as one of zeros is, boolean ``(B,)``."""
        from captum_fam.metrics.maps import find_empty

        return find_empty(self.attributions)

    def score_text(self, index: int = 0) -> str:
        """``"0.731"``; for a distance ``"-3.00 = 11.0 explained + -14.0 of the zero embedding"``."""
        return score_in_words(float(self.target_scores[index]), self._parts(index).get(ZERO_EMBEDDING))

    def account_text(self, index: int = 0) -> str:
        """What the map is to the score: ``"explains 12 % of the score; class token 85 %, bias 3 %"``."""
        if self.coverage is not None:
            return coverage_in_words(float(self.coverage[index]), self._parts(index))
        if self.convergence_delta is not None:
            return f"convergence delta {number_in_words(float(self.convergence_delta[index]))}"
        return NO_ACCOUNT

    def _parts(self, index: int) -> dict[str, float]:
        """The shares of one query."""
        return {name: float(share[index]) for name, share in (self.shares or {}).items()}

    def overlay(self, index: int = 0) -> Image:
        """The map of one query over its image: see :mod:`captum_fam.visualization` for the colors."""
        from captum_fam.visualization import overlay

        return overlay(self.images[index], self.attributions[index])

    def figure(
        self, index: int = 0, supports: Sequence[ImageLike] | Tensor = (), foils: Sequence[ImageLike] | Tensor = ()
    ) -> MapFigure:
        """One query with its supports, map and score."""
        return compare_figure([self], index, supports, foils)

    def save(self, folder: str | Path) -> None:
        """Write arrays, overlays and a manifest; the manifest stands only where all the files do.

        For each query ``NAME.npz`` with the map (``METHOD``), the attributions (``METHOD.layer``) and, where there
        are any, ``METHOD.contributions``, ``METHOD.delta``, ``METHOD.coverage`` and ``METHOD.shares.PART``; the overlay
        ``NAME.METHOD.png``; and ``manifest.json`` with model, layer, similarity, foil, scores, what the maps explain of
        them, sizes and versions.
        """
        with staged(folder) as scratch:
            queries = [write_query([self], index, scratch) for index in range(len(self))]
            manifest = {**self.about, "classes": list(self.class_names), "queries": queries, "versions": versions()}
            write_json(scratch / MANIFEST, manifest)


def explain(
    model: Callable[..., Any],
    inputs: Tensor,
    support: SupportSet | Tensor,
    *,
    layer: nn.Module | str | Sequence[nn.Module | str] | None = None,
    method: str | Method = "fam",
    target: int | str | Sequence[int] | Sequence[str] | Tensor | None = None,
    similarity: SimilarityLike = "cosine",
    foil: Literal["others", "runner-up"] | SupportSet | Tensor | None = None,
    aggregate: Aggregate = "mean",
    images: Sequence[ImageLike] | Tensor | None = None,
    names: Sequence[str] | None = None,
    class_names: Sequence[str] | None = None,
    batch_size: int = 32,
    **method_kwargs: Any,
) -> Explanation:
    """Explain why queries match their class.

    Args:
        model: maps a batch to embeddings ``(B, J)``; in eval mode.
        inputs: queries as the model takes them, ``(B, C, H, W)``.
        support: images or embeddings of one class, or a :class:`~captum_fam.SupportSet`.
        layer: whose map to make: a module or its dotted name in ``model``. None: found by measurement, with its token
            grid (:func:`~captum_fam.attr.layer_search.find_layer`). For ``"similarity-cam"`` also a list: the mean of
            the maps on the finest of their grids, each being an account of the same score.
        method: ``"fam"``, ``"similarity-cam"``, ``"grad-cam"``, ``"mean-activation"`` or another name in
            :data:`captum_fam.attr.registry.METHODS`; or a layer method's class, of Captum's or your own. Maps of
            several channels are summed over them.
        target: the class to explain, one for all or one a query, as index or name; None: the predicted class.
        similarity: as for :class:`~captum_fam.SimilarityToSupport`.
        foil: what the class is contrasted with, as there.
        aggregate: of the similarities to several supports, as there.
        images: the queries for display, in [0, 1], of any sizes; None: the inputs, each brought to [0, 1] by its
            smallest and largest value.
        names: of the queries, for the files; None: ``query-0``, ``query-1``, ...
        class_names: in the order of the class indices; None: those of ``support``.
        batch_size: how many queries go through the model at once.
        **method_kwargs: further arguments of the method's constructor.

    Raises:
        ValueError, TypeError: for arguments that do not fit; the message says which.

    Example:
        >>> why = explain(model, queries, SupportSet(images, labels), method="similarity-cam", foil="others")
        >>> why.maps.shape, why.target_scores.shape
        (torch.Size([8, 1, 224, 224]), torch.Size([8]))
        >>> why.account_text(0)
        'explains 100 % of the score'
        >>> why.save("why")
    """
    explainer = Explainer(
        model,
        support,
        layer=layer,
        method=method,
        similarity=similarity,
        foil=foil,
        aggregate=aggregate,
        class_names=class_names,
        batch_size=batch_size,
        **method_kwargs,
    )
    return explainer.explain(inputs, target=target, images=images, names=names)


class Explainer:
    """:func:`explain` for queries that come one batch after the other.

    Supports are embedded once, a layer is found once, by the first queries, and a method that warns does so once.

    Args:
        model, support, layer, method, similarity, foil, aggregate, class_names, batch_size, **method_kwargs: as there.

    Raises:
        ValueError, TypeError: as there.

    Example:
        >>> explainer = Explainer(model, support, method="similarity-cam")
        >>> explanations = [explainer.explain(some) for some in queries.split(4)]
    """

    def __init__(
        self,
        model: Callable[..., Any],
        support: SupportSet | Tensor,
        *,
        layer: nn.Module | str | Sequence[nn.Module | str] | None = None,
        method: str | Method = "fam",
        similarity: SimilarityLike = "cosine",
        foil: Literal["others", "runner-up"] | SupportSet | Tensor | None = None,
        aggregate: Aggregate = "mean",
        class_names: Sequence[str] | None = None,
        batch_size: int = 32,
        **method_kwargs: Any,
    ) -> None:
        self._model = model
        self._support = SupportSet(support, class_names=class_names) if isinstance(support, Tensor) else support
        self._classes = tuple(class_names or self._support.class_names)
        if len(self._classes) != self._support.n_classes:
            raise ValueError(
                f"class_names has {len(self._classes)} names for the {self._support.n_classes} classes of the support"
            )
        self._layer = layer
        self._method, self._make = get_method(method)
        self._of_scores: dict[str, Any] = {"similarity": similarity, "foil": foil, "aggregate": aggregate}
        self._options = method_kwargs
        self._batch_size = batch_size
        self._made: tuple[Any, SimilarityToSupport] | None = None

    def explain(
        self,
        inputs: Tensor,
        *,
        target: int | str | Sequence[int] | Sequence[str] | Tensor | None = None,
        images: Sequence[ImageLike] | Tensor | None = None,
        names: Sequence[str] | None = None,
    ) -> Explanation:
        """Explain a batch of queries: the arguments of :func:`explain` of these names."""
        _check_inputs(inputs)
        if not self._support.holds_embeddings and self._support.inputs.dim() != inputs.dim():
            raise ValueError(
                f"support has shape {tuple(self._support.inputs.shape)}; for inputs of shape {tuple(inputs.shape)} it "
                "must be images (K, C, H, W) shared by all queries, embeddings (K, J), or a SupportSet of these"
            )
        queries = _check_names(names, len(inputs))
        if images is None:
            images = _stretch(inputs)
        elif len(images) != len(inputs):
            raise ValueError(f"images must be one a query: got {len(images)} for {len(inputs)} queries")
        if self._made is None:
            self._made = self._make_method(inputs)
        attribution, scores = self._made
        chosen = _class_indices(target, self._classes, inputs)
        chunks = [
            _explain_chunk(attribution, scores, x, None if chosen is None else chosen[i : i + len(x)])
            for i, x in zip(range(0, len(inputs), self._batch_size), inputs.split(self._batch_size), strict=True)
        ]
        fields = {key: _join([chunk[key] for chunk in chunks]) for key in chunks[0] if key != "shares"}
        return Explanation(
            method=self._method,
            maps=LayerAttribution.interpolate(fields["attributions"], inputs.shape[2:], _INTERPOLATION[inputs.dim()]),
            class_names=self._classes,
            names=queries,
            images=images,
            shares=_combine([chunk["shares"] for chunk in chunks], torch.cat),
            support_blind=isinstance(attribution, SupportBlindAttribution),
            about=self._about(scores),
            **fields,
        )

    def _make_method(self, inputs: Tensor) -> tuple[Any, SimilarityToSupport]:
        """The method and the scores that it explains."""
        if self._layer is None:
            found = find_layer(self._model, inputs)  # type: ignore[arg-type]  # it refuses what is no module
            self._layer = found.name
            if found.token_grid is not None and "token_grid" in inspect.signature(self._make).parameters:
                self._options = {"token_grid": found.token_grid, **self._options}
        is_list = not isinstance(self._layer, nn.Module | str)
        layers = [resolve_layer(self._model, one) for one in _as_list(self._layer)]
        scores = SimilarityToSupport(self._model, self._support, **self._of_scores)
        attribution = self._make(scores, layers if is_list else layers[0], **self._options)
        if is_list and not isinstance(attribution, LayerSimilarityCAM):
            raise ValueError(
                f"layer is a list, of which {self._method} has no mean: only the maps of similarity-cam account for "
                "one and the same score; name one layer"
            )
        return attribution, scores

    def _about(self, scores: SimilarityToSupport) -> dict[str, Any]:
        model, foil = self._model, self._of_scores["foil"]
        assert self._layer is not None
        layers = [layer if isinstance(layer, str) else _name_in(model, layer) for layer in _as_list(self._layer)]
        options = {key: value if isinstance(value, str) else repr(value) for key, value in self._options.items()}
        return {
            "model": type(model).__name__ if isinstance(model, nn.Module) else getattr(model, "__name__", repr(model)),
            "layer": layers[0] if isinstance(self._layer, nn.Module | str) else layers,
            "similarity": repr(scores.similarity),
            "foil": foil if isinstance(foil, str) or foil is None else f"{len(foil)} supports",
            "aggregate": scores.aggregate,
            "supports": dict(zip(self._classes, self._support.labels.bincount().tolist(), strict=True)),
            "options": options,
        }


def compare_figure(
    explanations: Sequence[Explanation],
    index: int = 0,
    supports: Sequence[ImageLike] | Tensor = (),
    foils: Sequence[ImageLike] | Tensor = (),
    foil_title: str = "foil",
) -> MapFigure:
    """One query, explained by several methods: each map has a scale of its own, as their units differ."""
    from captum_fam.visualization import visualize_match

    first = explanations[0]
    target, predicted = (first.class_names[int(which[index])] for which in (first.target, first.predicted))
    titled = {_title(one): one for one in explanations}
    support_title = "support" if target == "support" else f"support\n{target}"
    count = first.about.get("supports", {}).get(target, 0)
    return visualize_match(
        first.images[index],
        {title: one.attributions[index] for title, one in titled.items()},
        supports=supports,
        foils=foils,
        notes={title: _notes(one, index) for title, one in titled.items()},
        scale="own",
        titles={
            "query": f"query\npredicted: {predicted}" if len(first.class_names) > 1 else "query",
            "supports": f"{support_title}\n{len(supports)} of {count}" if len(supports) < count else support_title,
            "foils": foil_title,
        },
    )


def _title(one: Explanation) -> str:
    """The method, and a foil where it knows of one."""
    has_foil = one.about.get("foil") is not None and not one.support_blind
    return f"{one.method}\nwith foil" if has_foil else one.method


def _notes(one: Explanation, index: int) -> str:
    """What stands above a map: a score only where the method knows the support."""
    score = [] if one.support_blind else [f"score {one.score_text(index)}"]
    return "\n".join([*score, one.account_text(index)])


def write_query(explanations: Sequence[Explanation], index: int, folder: Path) -> dict[str, Any]:
    """Write arrays and overlays of one query, by one or more methods; gives its entry of the manifest."""
    first = explanations[0]
    name = first.names[index]
    arrays: dict[str, Any] = {}
    methods = {}
    for one in explanations:
        arrays[one.method] = one.maps[index, 0]
        arrays[f"{one.method}.layer"] = one.attributions[index, 0]
        entry: dict[str, Any] = {
            "overlay": f"{name}.{one.method}.png",
            "map_size": list(one.maps.shape[2:]),
            "layer_size": list(one.attributions.shape[2:]),
            "flat": bool(one.flat[index]),
            "account": one.account_text(index),
        }
        if one.contributions is not None:
            arrays[f"{one.method}.contributions"] = one.contributions[index]
        if one.convergence_delta is not None:
            arrays[f"{one.method}.delta"] = one.convergence_delta[index]
            entry["convergence_delta"] = float(one.convergence_delta[index])
        if one.coverage is not None and one.shares is not None:
            arrays[f"{one.method}.coverage"] = one.coverage[index]
            arrays |= {f"{one.method}.shares.{name}": share[index] for name, share in one.shares.items()}
            entry["coverage"] = None if one.coverage[index].isnan() else float(one.coverage[index])
            entry["shares"] = {name: float(share[index]) for name, share in one.shares.items()}
            if ZERO_EMBEDDING in one.shares:
                entry["account"] = f"score {one.score_text(index)}; {one.account_text(index)}"
        one.overlay(index).save(folder / entry["overlay"])
        methods[one.method] = entry
    np.savez_compressed(folder / f"{name}.npz", **{key: value.cpu().numpy() for key, value in arrays.items()})
    return {
        "name": name,
        "scores": dict(zip(first.class_names, first.scores[index].tolist(), strict=True)),
        "predicted": first.class_names[int(first.predicted[index])],
        "target": first.class_names[int(first.target[index])],
        "arrays": f"{name}.npz",
        "methods": methods,
    }


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """UTF-8 JSON, indented."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def versions() -> dict[str, str]:
    """The versions that a result depends on."""
    from captum_fam import __version__

    found = {package: version(package) for package in ("captum", "torch")}
    return {"captum-fam": __version__, **found, "python": platform.python_version()}


@dataclass
class _Explained:
    """What a method gave for some of the queries: fields of an :class:`Explanation`, and similarities ``(B, K)``."""

    attributions: Tensor
    scores: Tensor
    predicted: Tensor
    target: Tensor
    similarities: Tensor
    contributions: Tensor | None = None
    convergence_delta: Tensor | None = None
    coverage: Tensor | None = None
    shares: Shares | None = None


def _explain_chunk(
    attribution: Any, scores: SimilarityToSupport, inputs: Tensor, target: Tensor | None
) -> dict[str, Any]:
    """The fields of an :class:`Explanation` that have a row a query."""
    if isinstance(attribution, LayerFAM | LayerSimilarityCAM | LayerSimilarityShapley | LayerCorrespondence):
        # One run of the model gives map and scores.
        explained = _from_details(attribution.details(inputs, target=target), inputs)
    else:
        explained = _from_attribute(attribution, scores, inputs, target)
    _drop_noise(explained, attribution, scores)
    fields = vars(explained)
    del fields["similarities"]
    return fields


def _from_details(details: Any, inputs: Tensor) -> _Explained:
    compared, maps = details.comparison, details.attributions
    each = [_check_attributions(one, inputs) for one in _listed(maps)]
    explained = _Explained(
        mean_of_layers(each), compared.scores, compared.predicted, compared.target, compared.similarities
    )
    if isinstance(details, FAMDetails):
        explained.contributions = details.contributions[0][0]
    elif isinstance(details, SimilarityCAMDetails):
        # Of layers the mean: all explain the same score, so that the mean of the quotients is that of the mean.
        explained.convergence_delta = torch.stack(_listed(details.convergence_delta)).mean(0)
        explained.coverage = torch.stack(_listed(details.coverage)).mean(0)
        shares = _listed(details.shares)
        explained.shares = _combine(shares, lambda parts: torch.stack(parts).mean(0))
    elif isinstance(details, SimilarityShapleyDetails):
        explained.convergence_delta, explained.coverage = details.convergence_delta, details.coverage
        explained.shares = details.shares
        start = compared.score - compared.explained_score
        if start.any():
            # What is there without any position counts from the zero embedding, as the explained score does.
            explained.shares = {**details.shares, EMPTY: details.shares[EMPTY] - start, ZERO_EMBEDDING: start}
    return explained


def _from_attribute(attribution: Any, scores: SimilarityToSupport, inputs: Tensor, target: Tensor | None) -> _Explained:
    with torch.no_grad():
        values, embedded, similarities, magnitude = scores._compare(inputs)
        predicted = embedded.predicted(similarities, magnitude)
    target = predicted if target is None else target
    delta: Tensor | None = None
    if getattr(attribution, "has_convergence_delta", bool)():
        maps, delta = attribution.attribute(inputs, target=target, return_convergence_delta=True)
    else:
        maps = attribution.attribute(inputs, target=target)
    maps = _check_attributions(maps, inputs)
    return _Explained(maps, values, predicted, target, similarities, convergence_delta=delta)


def _drop_noise(explained: _Explained, attribution: object, scores: SimilarityToSupport) -> None:
    """Set maps that are only rounding noise to zero; what they lose has no place in their account either."""
    magnitude = magnitude_of_scores(scores, explained.similarities)
    maps = without_noise(attribution, explained.attributions, lambda: magnitude)
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


def _join(parts: Sequence[Tensor | None]) -> Any:
    tensors = [part for part in parts if part is not None]
    return torch.cat(tensors).detach() if tensors else None


def _combine(accounts: Sequence[Shares | None], join: Callable[[list[Tensor]], Tensor]) -> Shares | None:
    """The parts of several accounts, joined by name; a part that an account does not have is zero there."""
    known = [account for account in accounts if account is not None]
    names = dict.fromkeys(name for account in known for name in account)
    order = [name for name in names if name != REST] + [name for name in names if name == REST]
    zeros = [torch.zeros_like(account[MAP]) for account in known]
    return {
        name: join([account.get(name, zero) for account, zero in zip(known, zeros, strict=True)]) for name in order
    } or None


def _as_list(layer: nn.Module | str | Sequence[nn.Module | str]) -> list[nn.Module | str]:
    return [layer] if isinstance(layer, nn.Module | str) else list(layer)


def _listed(of_layers: One | list[One]) -> list[One]:
    """What there is of each layer, where one layer stands alone too."""
    return of_layers if isinstance(of_layers, list) else [of_layers]


def _check_inputs(inputs: object) -> None:
    if not isinstance(inputs, Tensor):
        raise TypeError(f"inputs must be a tensor of queries (B, C, H, W), got {type(inputs).__name__}")
    if inputs.dim() not in _INTERPOLATION or not len(inputs):
        raise ValueError(f"inputs must be a batch of queries (B, C, H, W), got shape {tuple(inputs.shape)}")


def _check_names(names: Sequence[str] | None, count: int) -> tuple[str, ...]:
    if names is None:
        return tuple(f"query-{index}" for index in range(count))
    if len(names) != count or len(set(names)) != count:
        raise ValueError(f"names must be one a query, all different: got {len(set(names))} for {count} queries")
    if any(not name or Path(name).name != name for name in names):
        raise ValueError("names become file names: they must not be empty or hold a path separator")
    return tuple(names)


def _class_indices(target: Any, classes: tuple[str, ...], inputs: Tensor) -> Tensor | None:
    """``(B,)``, from one class for all or one a query, by index or name."""
    if target is None:
        return None
    each = [target] if np.ndim(target) == 0 else list(target)
    each = each * len(inputs) if len(each) == 1 else each
    if len(each) != len(inputs):
        raise ValueError(f"target must be one class for all or one a query: got {len(each)} for {len(inputs)} queries")
    return torch.tensor([_class_index(one, classes) for one in each], device=inputs.device)


def _class_index(target: Any, classes: tuple[str, ...]) -> int:
    if isinstance(target, str) and target in classes:
        return classes.index(target)
    if not isinstance(target, str) and 0 <= int(target) < len(classes):
        return int(target)
    shown = ", ".join(classes[:10]) + (", ..." if len(classes) > 10 else "")
    raise ValueError(f"target {target!r} is none of the {len(classes)} classes {shown}")


def _stretch(inputs: Tensor) -> Tensor:
    flat = inputs.detach().flatten(1)
    low, high = flat.amin(1, keepdim=True), flat.amax(1, keepdim=True)
    span = torch.where(high > low, high - low, 1.0)
    return ((flat - low) / span).view_as(inputs)


def _name_in(model: object, layer: nn.Module) -> str:
    modules = model.named_modules() if isinstance(model, nn.Module) else []
    return next((name for name, module in modules if module is layer), type(layer).__name__)
