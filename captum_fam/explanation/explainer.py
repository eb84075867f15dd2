"""Explaining several batches of queries that share a support."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, get_args

from captum.attr import LayerAttribution
from torch import Tensor

from captum_fam._training_mode import buffers_kept
from captum_fam._warnings import collected_notes
from captum_fam.attr.registry import MapMethod
from captum_fam.embedding.forward import device_of
from captum_fam.explanation.attributions import Attributions
from captum_fam.explanation.explain_call import ExplainCall
from captum_fam.explanation.pairs.own_images import SharedContrast
from captum_fam.explanation.pairs.pair_runs import PairRuns
from captum_fam.explanation.pairs.pairs_of_queries import make_pairs
from captum_fam.explanation.reading.arguments import (
    INTERPOLATION,
    check_at_least,
    check_names,
    class_indices,
    for_display,
    misfits_named,
)
from captum_fam.explanation.reading.compared import read_compared
from captum_fam.explanation.reading.layers import LayerLike
from captum_fam.explanation.reading.methods import MethodsLike, check_options, choose_methods, read_methods
from captum_fam.explanation.reading.model import ModelLike, PreprocessingLike, read_model
from captum_fam.explanation.reading.parts import check_classes
from captum_fam.explanation.reading.pictures import images_for_display
from captum_fam.explanation.reading.queries import (
    Inputs,
    find_queries_among,
    own_embedding_in_words,
    read_queries,
)
from captum_fam.explanation.reading.supports import SupportLike, SupportReader, float_type_of
from captum_fam.explanation.reading.thumbnails import pictures_of, row_pictures
from captum_fam.explanation.result import Explanation
from captum_fam.functional import check_window, smooth_maps
from captum_fam.similarity import Similarity, SimilarityLike, get_similarity
from captum_fam.support import Against, Aggregate, Comparison, FoilLike, Support, WeightedSupport, support_from_tensor
from captum_fam.support.labels import check_class_names
from captum_fam.support.threshold import check_in_range

if TYPE_CHECKING:
    from PIL.Image import Image

    from captum_fam.visualization import ImageLike

Sides = Literal["query", "both"]


class Explainer:
    """:func:`explain` for several batches of queries that share a support.

    Pictures of the support are read and embedded once, and a layer is searched for once, with the first batch.

    Args:
        model, support, layer, method, similarity, foil, gallery, against, threshold, aggregate, smooth, sides, top,
            top_matches, class_names, batch_size, preprocess, output, **method_kwargs: the arguments of :func:`explain`
            with the same names.

    Raises:
        ValueError, TypeError: as :func:`explain`.

    Example:
        >>> explainer = Explainer(model, support)
        >>> explanations = [explainer.explain(batch) for batch in queries.split(4)]
    """

    def __init__(
        self,
        model: ModelLike,
        support: SupportLike,
        *,
        layer: LayerLike | None = None,
        method: MethodsLike = None,
        similarity: SimilarityLike | None = None,
        foil: FoilLike | SupportLike | None = None,
        gallery: SupportLike | None = None,
        against: Against | None = None,
        threshold: float | None = None,
        aggregate: Aggregate = "mean",
        smooth: int = 1,
        sides: Sides = "query",
        top: int = 5,
        top_matches: int = 16,
        class_names: Sequence[str] | None = None,
        batch_size: int = 32,
        preprocess: PreprocessingLike | Callable[[Image], Tensor] | None = None,
        output: Any = None,
        **method_kwargs: Any,
    ) -> None:
        batch_size, top = check_at_least("batch_size", batch_size, 1), check_at_least("top", top, 1)
        if sides not in get_args(Sides):
            raise ValueError(f'sides must be "query" or "both", got {sides!r}')
        named = read_methods(method)
        self._model = read_model(model, preprocess, output)
        self._class_names = None if class_names is None else check_class_names(class_names)
        self._batch_size = batch_size
        self._top = top if sides == "both" else 0
        self._top_matches = check_at_least("top_matches", top_matches, 0)
        self._smooth = check_window("smooth", smooth)
        self._reader = SupportReader(
            self._model.forward_func,
            self._model.preprocessing,
            batch_size,
            device_of(self._model.forward_func),
            sides == "both" or any(one.needs_images for one in named or ()),
        )
        with buffers_kept(self._model.forward_func):
            self._compared = read_compared(self._reader, support, foil, gallery, against, threshold)
        if isinstance(self._compared.support, Support):
            self._classes_of(self._compared.support)
        similarity = self._similarity_for(similarity)
        if not isinstance(self._compared.support, WeightedSupport):  # its weights need not sum to one
            check_in_range(self._compared.threshold, self._measure(similarity))
        self._chosen = choose_methods(named, self._measure(similarity), layer)
        check_options(self._chosen.methods, method_kwargs)
        self._attributions = Attributions(
            self._model,
            self._chosen.methods,
            layer,
            method_kwargs,
            {
                "similarity": similarity,
                "aggregate": aggregate,
                "against": self._compared.against,
                "threshold": self._compared.threshold,
            },
        )

    def explain(
        self,
        inputs: Inputs,
        *,
        target: int | str | Sequence[int] | Sequence[str] | Tensor | None = None,
        images: Sequence[ImageLike] | Tensor | None = None,
        names: Sequence[str] | None = None,
    ) -> Explanation:
        """Explain a batch of queries.

        Args:
            inputs: queries, as for :func:`explain`.
            target: the class to explain, as for :func:`explain`. Default: None, the predicted class of each query.
            images: the queries for display, as for :func:`explain`. Default: None, the pictures or the scaled inputs.
            names: names of the queries. Default: None, the names of files, or ``query-0``, ``query-1``, ...

        Raises:
            ValueError, TypeError: for arguments that do not fit; the message names the argument.
        """
        with collected_notes(1) as notes:
            return self.noted(notes, inputs, target=target, images=images, names=names)

    def noted(
        self,
        notes: list[str],
        inputs: Inputs,
        *,
        target: int | str | Sequence[int] | Sequence[str] | Tensor | None = None,
        images: Sequence[ImageLike] | Tensor | None = None,
        names: Sequence[str] | None = None,
        support: Support | None = None,
    ) -> Explanation:
        """Explain a batch of queries as :meth:`explain` does, but collect warnings in a list.

        Args:
            notes: the list to which warnings for the user are added.
            inputs: as for :meth:`explain`.
            target: as for :meth:`explain`. Default: None.
            images: as for :meth:`explain`. Default: None.
            names: as for :meth:`explain`. Default: None.
            support: the support of this batch only, such as ``bank.using(exclude=...)`` for a bank. Default: None, the
                support of the explainer.

        Raises:
            ValueError, TypeError: for arguments that do not fit; the message names the argument.
        """
        with buffers_kept(self._model.forward_func):
            call = self._read(inputs, target, images, names, support, notes)
            of_methods: list[list[str]] = [[] for _ in self._chosen.methods]
            with misfits_named(call.placed, float_type_of(self._model.forward_func)):
                joined, comparisons = call.explain(
                    self._attributions,
                    of_methods,
                    batch_size=self._batch_size,
                    embedder=None if self._chosen.needs_images else self._model.forward_func,
                    keeps_comparisons=self._top > 0,
                )
            explained = [
                self._explanation(call, method, values)
                for method, values in zip(self._chosen.methods, joined, strict=True)
            ]
            if self._top:
                explained = self._with_pairs(call, explained, comparisons, of_methods)
            self._model.tell(notes)
            notes += [] if self._chosen.note is None else [self._chosen.note]
            notes += [note for of_method in of_methods[: self._chosen.n_asked] for note in of_method]
            unsaid = ~call.own.is_only & ~call.own_foil.is_only
            for name in ("has_own_embedding", "foil_has_own_embedding"):
                if (joined[0][name].cpu() & unsaid).any():
                    notes.append(
                        own_embedding_in_words(call.support, self._compared.foil, is_foil=name.startswith("foil"))
                    )
            explained = [
                replace(one, notes=tuple(dict.fromkeys([*self._model.told, *notes, *of_method])))
                for one, of_method in zip(explained, of_methods, strict=True)
            ]
            return replace(explained[0], beside=tuple(explained[1:]))

    def _read(
        self, inputs: Inputs, target: Any, images: Any, names: Any, support: Support | None, notes: list[str]
    ) -> ExplainCall:
        """What one call explains, with its arguments checked before the model runs."""
        read = read_queries(
            inputs,
            self._model.preprocessing,
            self._batch_size,
            self._reader.device,
            float_type_of(self._model.forward_func),
        )
        queries = read.inputs
        images = read.photos if images is None else images_for_display(images, len(queries))
        names = check_names(read.names if names is None else names, len(queries))
        is_shared = support is None
        if support is None:
            given = self._compared.support
            support = given if isinstance(given, Support) else support_from_tensor(given, (queries,))
        support.check_queries((queries,), None)
        ids = self._compared.ids if is_shared else None
        own = find_queries_among(support, ids, queries, notes)
        own_foil = find_queries_among(self._compared.foil, self._compared.foil_ids, queries, notes, is_foil=True)
        classes = self._classes_of(support)
        targets = class_indices(target, classes, queries)
        check_classes(support, own, self._compared.foil, targets)
        return ExplainCall(
            queries,
            names,
            for_display(queries) if images is None else images,
            support,
            self._compared.foil,
            is_shared,
            own,
            own_foil,
            classes,
            targets,
            ids,
        )

    def _with_pairs(
        self,
        call: ExplainCall,
        explained: Sequence[Explanation],
        comparisons: Sequence[Comparison],
        notes: Sequence[list[str]],
    ) -> list[Explanation]:
        """The explanations with the pairs of queries and supports, for both sides."""
        runs = PairRuns(
            self._model,
            self._attributions.choose(call.queries),
            self._chosen.methods,
            self._attributions.options,
            self._attributions.similarity,
            self._batch_size,
            notes,
            self._top_matches,
            self._smooth,
        )
        pairs = make_pairs(
            explained[0],
            comparisons,
            call.queries,
            call.support,
            runs=runs,
            top=self._top,
            contrast=SharedContrast(call.foil, self._compared.foil_ids, call.own_foil.left_out, call.support, call.ids),
            names=self._compared.names if call.is_shared else None,
            against=self._compared.against,
            threshold=self._compared.threshold,
        )
        return [replace(one, pairs=of_method) for one, of_method in zip(explained, pairs, strict=True)]

    def _explanation(self, call: ExplainCall, method: MapMethod, values: Mapping[str, Any]) -> Explanation:
        """The explanation by one method."""
        fields = {key: value for key, value in values.items() if not key.endswith("has_own_embedding")}
        fields["attributions"] = smooth_maps(values["attributions"], self._smooth)
        size, mode = call.queries.shape[2:], INTERPOLATION[call.queries.dim()]
        thumbnails = self._compared.thumbnails if call.is_shared else None
        are_classes = self._attributions.score_options["aggregate"] == "prototype"
        return Explanation(
            method=method.name,
            maps=LayerAttribution.interpolate(fields["attributions"], size, mode),
            class_names=call.classes,
            names=call.names,
            images=call.images,
            support_blind=method.support_blind,
            about=self._about(call, method),
            support_pictures=pictures_of(call.support, thumbnails, call.own.left_out, are_classes),
            foil_pictures=row_pictures(self._compared.foil, self._compared.foil_thumbnails, call.own_foil.left_out),
            **fields,
        )

    def _similarity_for(self, similarity: SimilarityLike | None) -> SimilarityLike | None:
        """The similarity that was asked for, else of the support, else of the model."""
        own = self._compared.support.similarity if isinstance(self._compared.support, Support) else None
        return self._model.similarity if similarity is None and own is None else similarity

    def _measure(self, similarity: SimilarityLike | None) -> Similarity:
        """The similarity that the model decides with."""
        asked = None if similarity is None else get_similarity(similarity)
        if isinstance(self._compared.support, Support):
            return self._compared.support.measure(asked)
        return get_similarity("cosine") if asked is None else asked

    def _classes_of(self, support: Support) -> tuple[str, ...]:
        """The names of the classes; an error if there are not as many as classes."""
        classes = tuple(self._class_names or support.class_names)
        if len(classes) != support.n_classes:
            raise ValueError(f"class_names has {len(classes)} names for the {support.n_classes} classes of the support")
        return classes

    def _about(self, call: ExplainCall, method: MapMethod) -> dict[str, Any]:
        """Model, preprocessing, layer, similarity, foil, smoothing and options, as JSON can represent them."""
        attributions = self._attributions
        return {
            "model": self._model.name,
            "preprocessing": self._model.used_preprocessing(),
            "layer": attributions.choose(call.queries).name,
            "similarity": repr(attributions.similarity),
            **self._compared.about(call.support),
            "aggregate": attributions.score_options["aggregate"],
            "smooth": self._smooth,
            "supports": dict(zip(call.classes, call.support.class_counts, strict=True)),
            **({"top_matches": self._top_matches} if self._top else {}),
            "options": attributions.about(method),
        }
