"""Explaining queries in one call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from captum.attr import LayerAttribution
from torch import Tensor, nn

from captum_fam._warnings import collected_notes
from captum_fam.attr.layer_lookup import resolve_layer
from captum_fam.attr.layer_search import find_layer
from captum_fam.attr.registry import MapMethod, get_method
from captum_fam.explanation.batch import ExplainedBatch, explain_batch, join_shares
from captum_fam.explanation.result import Explanation
from captum_fam.similarity import SimilarityLike
from captum_fam.support import Aggregate, FoilLike, SimilarityToSupport, Support, support_from_tensor

if TYPE_CHECKING:
    from captum_fam.visualization import ImageLike

_INTERPOLATION = {3: "linear", 4: "bilinear", 5: "trilinear"}


def explain(
    model: Callable[..., Any],
    inputs: Tensor,
    support: Support | Tensor,
    *,
    layer: nn.Module | str | Sequence[nn.Module | str] | None = None,
    method: str | Callable[..., Any] | MapMethod = "fam",
    target: int | str | Sequence[int] | Sequence[str] | Tensor | None = None,
    similarity: SimilarityLike | None = None,
    foil: FoilLike | None = None,
    aggregate: Aggregate = "mean",
    images: Sequence[ImageLike] | Tensor | None = None,
    names: Sequence[str] | None = None,
    class_names: Sequence[str] | None = None,
    batch_size: int = 32,
    **method_kwargs: Any,
) -> Explanation:
    """Explain why each query matches its class.

    Args:
        model: maps a batch to embeddings ``(B, J)``; in eval mode.
        inputs: queries as the model takes them, ``(B, C, H, W)``.
        support: a :class:`~captum_fam.SupportSet`, a :class:`~captum_fam.MemoryBank` or any other
            :class:`~captum_fam.Support`; or images or embeddings of one class, ``(K, ...)`` shared by all queries or
            ``(B, K, ...)`` with one set per query.
        layer: the layer whose map is made: a module, or its dotted name in ``model``. ``"similarity-cam"`` also takes a
            list of layers, and gives the mean of their maps on the finest of their grids; each of the maps accounts for
            the same score. Default: None, :func:`~captum_fam.attr.layer_search.find_layer` finds a layer and its token
            grid by measurement.
        method: ``"fam"``, ``"similarity-cam"``, ``"grad-cam"``, ``"mean-activation"`` or another registered
            name (:func:`~captum_fam.attr.list_methods`); or the class of a layer method of Captum or of your own.
            Maps of several channels are summed over the channels. Default: ``"fam"``.
        target: the class to explain, as index or name: one class for all queries, or one class per query. Default:
            None, the predicted class of each query.
        similarity: a name, a :class:`~captum_fam.similarity.Similarity` or a callable metric. Default: None, the
            similarity of the support if it has one, else the cosine.
        foil: the score that is subtracted from the score of the class: ``"others"``, ``"runner-up"``, a
            :class:`~captum_fam.SupportSet` or a tensor, as for :class:`~captum_fam.SimilarityToSupport`. Default:
            None, no foil.
        aggregate: ``"mean"``, or ``"prototype"`` to compare with the mean embedding of a class, as for
            :class:`~captum_fam.SimilarityToSupport`. Default: ``"mean"``.
        images: the queries for display, in [0, 1], of any sizes. Default: None, the inputs, each scaled to [0, 1] by
            its smallest and largest value.
        names: names of the queries, which become file names. Default: None, ``query-0``, ``query-1``, ...
        class_names: C names in the order of the class indices. Default: None, the names in ``support``.
        batch_size: how many queries go through the model at once. Default: 32.
        **method_kwargs: further arguments of the method's constructor.

    Returns:
        Maps, scores and accounts of all queries.

    Raises:
        ValueError, TypeError: for arguments that do not fit; the message names the argument.

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
    with collected_notes(1) as notes:
        return explainer.noted(notes, inputs, target=target, images=images, names=names)


class Explainer:
    """:func:`explain` for several batches of queries that share a support.

    The support is embedded once, and a layer is searched for once, with the first batch.

    Args:
        model, support, layer, method, similarity, foil, aggregate, class_names, batch_size, **method_kwargs: the
            arguments of :func:`explain` with the same names.

    Raises:
        ValueError, TypeError: as :func:`explain`.

    Example:
        >>> explainer = Explainer(model, support, method="similarity-cam")
        >>> explanations = [explainer.explain(batch) for batch in queries.split(4)]
    """

    def __init__(
        self,
        model: Callable[..., Any],
        support: Support | Tensor,
        *,
        layer: nn.Module | str | Sequence[nn.Module | str] | None = None,
        method: str | Callable[..., Any] | MapMethod = "fam",
        similarity: SimilarityLike | None = None,
        foil: FoilLike | None = None,
        aggregate: Aggregate = "mean",
        class_names: Sequence[str] | None = None,
        batch_size: int = 32,
        **method_kwargs: Any,
    ) -> None:
        if isinstance(model, SimilarityToSupport):
            raise TypeError(
                "model is a SimilarityToSupport, whose outputs are no embeddings; pass its model and support"
            )
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self._model = model
        self._support = support
        self._class_names = class_names
        self._layer = layer
        self._method = get_method(method)
        self._score_options: dict[str, Any] = {"similarity": similarity, "foil": foil, "aggregate": aggregate}
        self._options = method_kwargs
        self._batch_size = batch_size
        self._attribution: tuple[Any, SimilarityToSupport] | None = None
        if isinstance(support, Support):
            self._classes_of(support)

    def explain(
        self,
        inputs: Tensor,
        *,
        target: int | str | Sequence[int] | Sequence[str] | Tensor | None = None,
        images: Sequence[ImageLike] | Tensor | None = None,
        names: Sequence[str] | None = None,
    ) -> Explanation:
        """Explain a batch of queries.

        Args:
            inputs: queries as the model takes them, ``(B, C, H, W)``.
            target: the class to explain, as for :func:`explain`. Default: None, the predicted class of each query.
            images: the queries for display, as for :func:`explain`. Default: None, the scaled inputs.
            names: names of the queries. Default: None, ``query-0``, ``query-1``, ...

        Raises:
            ValueError, TypeError: for arguments that do not fit; the message names the argument.
        """
        with collected_notes(1) as notes:
            return self.noted(notes, inputs, target=target, images=images, names=names)

    def noted(
        self,
        notes: list[str],
        inputs: Tensor,
        *,
        target: int | str | Sequence[int] | Sequence[str] | Tensor | None = None,
        images: Sequence[ImageLike] | Tensor | None = None,
        names: Sequence[str] | None = None,
    ) -> Explanation:
        """Explain a batch of queries as :meth:`explain` does, but collect warnings in a list.

        Args:
            notes: the list to which warnings for the user are added.
            inputs: as for :meth:`explain`.
            target: as for :meth:`explain`. Default: None.
            images: as for :meth:`explain`. Default: None.
            names: as for :meth:`explain`. Default: None.

        Raises:
            ValueError, TypeError: for arguments that do not fit; the message names the argument.
        """
        _check_inputs(inputs)
        support = self._support if isinstance(self._support, Support) else support_from_tensor(self._support, (inputs,))
        support.check_queries((inputs,), None)
        classes = self._classes_of(support)
        query_names = _check_names(names, len(inputs))
        if images is None:
            images = _stretch(inputs)
        elif len(images) != len(inputs):
            raise ValueError(f"images must be one per query: got {len(images)} for {len(inputs)} queries")
        targets = _class_indices(target, classes, inputs)
        batches = []
        for start, batch in zip(range(0, len(inputs), self._batch_size), inputs.split(self._batch_size), strict=True):
            attribution, scores = self._make(inputs, support.for_queries(start, start + len(batch)))
            batch_targets = None if targets is None else targets[start : start + len(batch)]
            batches.append(explain_batch(self._method, attribution, scores, batch, batch_targets, notes))
        joined: dict[str, Any] = {
            field.name: _join([getattr(batch, field.name) for batch in batches]) for field in fields(ExplainedBatch)
        }
        joined["shares"] = join_shares([batch.shares for batch in batches], torch.cat)
        size, mode = inputs.shape[2:], _INTERPOLATION[inputs.dim()]
        return Explanation(
            method=self._method.name,
            maps=LayerAttribution.interpolate(joined["attributions"], size, mode),
            class_names=classes,
            names=query_names,
            images=images,
            support_blind=self._method.support_blind,
            about=self._about(scores, classes),
            **joined,
        )

    def _classes_of(self, support: Support) -> tuple[str, ...]:
        """The names of the classes; an error if there are not as many as classes."""
        classes = tuple(self._class_names or support.class_names)
        if len(classes) != support.n_classes:
            raise ValueError(f"class_names has {len(classes)} names for the {support.n_classes} classes of the support")
        return classes

    def _make(self, inputs: Tensor, support: Support) -> tuple[Any, SimilarityToSupport]:
        """The attribution object and its scores, made once for a support that all queries share, else per batch."""
        if self._attribution is not None and not support.per_query:
            return self._attribution
        if self._layer is None:
            best = find_layer(self._model, inputs)  # type: ignore[arg-type]  # find_layer refuses a model that is no module
            self._layer = best.name
            if best.token_grid is not None and self._method.takes_tokens:
                self._options = {"token_grid": best.token_grid, **self._options}
        is_list = not isinstance(self._layer, nn.Module | str)
        if is_list and not self._method.adds_up:
            raise ValueError(
                f"layer is a list, but the maps of {self._method.name} have no mean over layers: only maps that add up "
                "to the score have one, such as those of similarity-cam; name one layer"
            )
        layers = [resolve_layer(self._model, layer) for layer in _as_list(self._layer)]
        scores = SimilarityToSupport(self._model, support, **self._score_options)
        attribution = self._method.make(scores, layers if is_list else layers[0], **self._options)
        self._attribution = attribution, scores
        return self._attribution

    def _about(self, scores: SimilarityToSupport, classes: tuple[str, ...]) -> dict[str, Any]:
        """Model, layer, similarity, foil, supports and options, as JSON can represent them."""
        model = self._model
        foil = getattr(scores.support, "foil", None) if scores.foil is None else scores.foil
        assert self._layer is not None
        layers = [layer if isinstance(layer, str) else _name_in(model, layer) for layer in _as_list(self._layer)]
        options = {key: value if isinstance(value, str) else repr(value) for key, value in self._options.items()}
        return {
            "model": type(model).__name__ if isinstance(model, nn.Module) else getattr(model, "__name__", repr(model)),
            "layer": layers[0] if isinstance(self._layer, nn.Module | str) else layers,
            "similarity": repr(scores.similarity),
            "foil": foil if isinstance(foil, str) or foil is None else f"{len(foil)} supports",
            "aggregate": scores.aggregate,
            "supports": dict(zip(classes, scores.support.class_counts, strict=True)),
            "options": options,
        }


def _as_list(layer: nn.Module | str | Sequence[nn.Module | str]) -> list[nn.Module | str]:
    return [layer] if isinstance(layer, nn.Module | str) else list(layer)


def _join(parts: Sequence[Any]) -> Tensor | None:
    tensors = [part for part in parts if isinstance(part, Tensor)]
    return torch.cat(tensors) if tensors else None


def _check_inputs(inputs: object) -> None:
    if not isinstance(inputs, Tensor):
        raise TypeError(f"inputs must be a tensor of queries (B, C, H, W), got {type(inputs).__name__}")
    if inputs.dim() not in _INTERPOLATION or not len(inputs):
        raise ValueError(f"inputs must be a batch of queries (B, C, H, W), got shape {tuple(inputs.shape)}")


def _check_names(names: Sequence[str] | None, count: int) -> tuple[str, ...]:
    if names is None:
        return tuple(f"query-{index}" for index in range(count))
    if len(names) != count or len(set(names)) != count:
        raise ValueError(f"names must be one per query, all different: got {len(set(names))} for {count} queries")
    if any(not name or Path(name).name != name for name in names):
        raise ValueError("names become file names: they must not be empty or hold a path separator")
    return tuple(names)


def _class_indices(target: Any, classes: tuple[str, ...], inputs: Tensor) -> Tensor | None:
    """The class index of each query, ``(B,)``, from one class for all queries or one per query, by index or name."""
    if target is None:
        return None
    targets = [target] if np.ndim(target) == 0 else list(target)
    targets = targets * len(inputs) if len(targets) == 1 else targets
    if len(targets) != len(inputs):
        raise ValueError(
            f"target must be one class for all or one per query: got {len(targets)} for {len(inputs)} queries"
        )
    return torch.tensor([_class_index(label, classes) for label in targets], device=inputs.device)


def _class_index(target: Any, classes: tuple[str, ...]) -> int:
    if isinstance(target, str) and target in classes:
        return classes.index(target)
    if not isinstance(target, str) and 0 <= int(target) < len(classes):
        return int(target)
    first_classes = ", ".join(classes[:10]) + (", ..." if len(classes) > 10 else "")
    raise ValueError(f"target {target!r} is none of the {len(classes)} classes {first_classes}")


def _stretch(inputs: Tensor) -> Tensor:
    """Each query scaled to [0, 1] by its smallest and largest value, for display."""
    flat = inputs.detach().flatten(1)
    low, high = flat.amin(1, keepdim=True), flat.amax(1, keepdim=True)
    span = torch.where(high > low, high - low, 1.0)
    return ((flat - low) / span).view_as(inputs)


def _name_in(model: object, layer: nn.Module) -> str:
    """The dotted name of a layer in a model; its class name if the model does not contain it."""
    modules = model.named_modules() if isinstance(model, nn.Module) else []
    return next((name for name, module in modules if module is layer), type(layer).__name__)
