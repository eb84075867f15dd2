"""Explaining queries in one call: maps, scores and channel contributions as a result that can be drawn and saved."""

from __future__ import annotations

import json
import platform
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from captum.attr import LayerAttribution
from torch import Tensor, nn

from captum_fam._staging import MANIFEST, staged
from captum_fam.attr import LayerCorrespondence, LayerFAM, LayerSimilarityCAM
from captum_fam.attr._similarity_attribution import resolve_layer
from captum_fam.attr.layer_fam import FAMDetails
from captum_fam.attr.layer_similarity_cam import SimilarityCAMDetails
from captum_fam.functional import widen
from captum_fam.methods import WITH_FOIL, Method, get_method
from captum_fam.similarity import SimilarityLike
from captum_fam.support import Aggregate, SimilarityToSupport, SupportSet

if TYPE_CHECKING:
    from PIL.Image import Image

    from captum_fam.visualization import ImageLike, MapFigure

_INTERPOLATION = {3: "linear", 4: "bilinear", 5: "trilinear"}


@dataclass(frozen=True, eq=False)
class Explanation:
    """Why each query of a batch matched its class.

    Attributes:
        method: the name of the method.
        maps: the attributions at the inputs' size, bilinear, not normalised, ``(B, 1, H, W)``.
        attributions: as the method gave them at the layer, ``(B, 1, h, w)``.
        scores: of every class, less its foil where there is one, ``(B, C)``.
        predicted: the class of the largest score, ``(B,)``.
        target: the explained class, ``(B,)``.
        class_names: C names.
        names: B names, of the queries.
        images: B images in [0, 1], for overlays; of any sizes.
        contributions: what each channel of the layer adds to the similarity, before any normalisation, ``(B, N)``;
            None for methods without.
        convergence_delta: the map's sum less the explained score, ``(B,)``; None for methods without.
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
    about: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.maps)

    @property
    def target_scores(self) -> Tensor:
        """The score that each map explains, ``(B,)``."""
        return self.scores.gather(1, self.target.unsqueeze(1)).squeeze(1)

    def overlay(self, index: int = 0) -> Image:
        """The map of one query over its image: see :mod:`captum_fam.visualization` for the colours."""
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
        are any, ``METHOD.contributions`` and ``METHOD.delta``; the overlay ``NAME.METHOD.png``; and
        ``manifest.json`` with model, layer, similarity, foil, scores, sizes and versions.
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
    layer: nn.Module | str,
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
        layer: whose map to make: a module or its dotted name in ``model``.
        method: ``"fam"``, ``"similarity-cam"``, ``"grad-cam"``, ``"mean-activation"`` or another name in
            :data:`captum_fam.methods.METHODS`; or a layer method's class, of Captum's or your own. Maps of several
            channels are summed over them.
        target: the class to explain, one for all or one a query, as index or name; None: the predicted class.
        similarity: as for :class:`~captum_fam.SimilarityToSupport`.
        foil: what the class is contrasted with, as there. With one, ``"fam"`` leaves its contributions as they are
            unless ``normalization`` is given: min-max would erase their sign.
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
        >>> why = explain(model, queries, SupportSet(images, labels), layer="layer4", foil="others")
        >>> why.maps.shape, why.target_scores.shape
        (torch.Size([8, 1, 224, 224]), torch.Size([8]))
        >>> why.save("why")
    """
    _check_inputs(inputs)
    if isinstance(support, Tensor):
        support = SupportSet(support, class_names=class_names)
    classes = tuple(class_names or support.class_names)
    if len(classes) != support.n_classes:
        raise ValueError(f"class_names has {len(classes)} names for the {support.n_classes} classes of the support")
    if not support.holds_embeddings and support.inputs.dim() != inputs.dim():
        raise ValueError(
            f"support has shape {tuple(support.inputs.shape)}; for inputs of shape {tuple(inputs.shape)} it must be "
            "images (K, C, H, W) shared by all queries, embeddings (K, J), or a SupportSet of these"
        )
    queries = _check_names(names, len(inputs))
    if images is None:
        images = _stretch(inputs)
    elif len(images) != len(inputs):
        raise ValueError(f"images must be one a query: got {len(images)} for {len(inputs)} queries")

    if isinstance(model, nn.Module) and model.training:
        warnings.warn("model is in training mode: call model.eval(), or dropout and batch statistics act", stacklevel=2)
    method_name, make = get_method(method)
    if foil is not None:
        method_kwargs = {**WITH_FOIL.get(method_name, {}), **method_kwargs}
    module = resolve_layer(model, layer)
    scores = SimilarityToSupport(model, support, similarity, foil, aggregate)
    attribution = make(scores, module, **method_kwargs)
    chosen = _class_indices(target, classes, inputs)
    chunks = [
        _explain_chunk(attribution, scores, x, None if chosen is None else chosen[i : i + len(x)])
        for i, x in zip(range(0, len(inputs), batch_size), inputs.split(batch_size), strict=True)
    ]
    fields = {key: _join([chunk[key] for chunk in chunks]) for key in chunks[0]}
    return Explanation(
        method=method_name,
        maps=LayerAttribution.interpolate(fields["attributions"], inputs.shape[2:], _INTERPOLATION[inputs.dim()]),
        class_names=classes,
        names=queries,
        images=images,
        about={
            "model": type(model).__name__ if isinstance(model, nn.Module) else getattr(model, "__name__", repr(model)),
            "layer": layer if isinstance(layer, str) else _name_in(model, layer),
            "similarity": repr(scores.similarity),
            "foil": foil if isinstance(foil, str) or foil is None else f"{len(foil)} supports",
            "aggregate": aggregate,
            "supports": dict(zip(classes, support.labels.bincount().tolist(), strict=True)),
            "options": {key: value if isinstance(value, str) else repr(value) for key, value in method_kwargs.items()},
        },
        **fields,
    )


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
    titled = {one.method if one.about.get("foil") is None else f"{one.method}\nwith foil": one for one in explanations}
    support_title = "support" if target == "support" else f"support\n{target}"
    count = first.about.get("supports", {}).get(target, 0)
    return visualize_match(
        first.images[index],
        {title: one.attributions[index] for title, one in titled.items()},
        supports=supports,
        foils=foils,
        scores={title: float(one.target_scores[index]) for title, one in titled.items()},
        scale="own",
        titles={
            "query": f"query\npredicted: {predicted}" if len(first.class_names) > 1 else "query",
            "supports": f"{support_title}\n{len(supports)} of {count}" if len(supports) < count else support_title,
            "foils": foil_title,
        },
    )


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
        }
        if one.contributions is not None:
            arrays[f"{one.method}.contributions"] = one.contributions[index]
        if one.convergence_delta is not None:
            arrays[f"{one.method}.delta"] = one.convergence_delta[index]
            entry["convergence_delta"] = float(one.convergence_delta[index])
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


def _explain_chunk(
    attribution: Any, scores: SimilarityToSupport, inputs: Tensor, target: Tensor | None
) -> dict[str, Tensor | None]:
    contributions: Tensor | None = None
    delta: Any = None
    if isinstance(attribution, LayerFAM | LayerSimilarityCAM | LayerCorrespondence):
        # One run of the model gives map and scores.
        details = attribution.details(inputs, target=target)
        attributions: Any = details.attributions
        compared = details.comparison
        values, predicted, target = compared.scores, compared.predicted, compared.target
        if isinstance(details, FAMDetails):
            contributions = details.contributions[0][0]
        elif isinstance(details, SimilarityCAMDetails):
            delta = details.convergence_delta
    else:
        with torch.no_grad():
            values = scores(inputs)
        predicted = values.argmax(1)
        target = predicted if target is None else target
        if getattr(attribution, "has_convergence_delta", bool)():
            attributions, delta = attribution.attribute(inputs, target=target, return_convergence_delta=True)
        else:
            attributions = attribution.attribute(inputs, target=target)
    return {
        "attributions": _check_attributions(attributions, inputs),
        "scores": values,
        "predicted": predicted,
        "target": target,
        "contributions": contributions,
        "convergence_delta": delta,
    }


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
