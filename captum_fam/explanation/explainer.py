"""Explaining queries in one call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from captum.attr import LayerAttribution
from torch import Tensor

from captum_fam._warnings import collected_notes
from captum_fam.attr.layer_similarity_cam import LayerSimilarityCAM
from captum_fam.attr.registry import MapMethod, get_method
from captum_fam.embedding.forward import device_of
from captum_fam.explanation.arguments import INTERPOLATION, check_names, class_indices, for_display
from captum_fam.explanation.batch import explain_batch, join_batches
from captum_fam.explanation.layers import ChosenLayers, LayerLike, choose_layers
from captum_fam.explanation.model import ModelLike, PreprocessingLike, read_model
from captum_fam.explanation.parts import Part, check_classes, numbered_from, split_queries
from captum_fam.explanation.pictures import images_for_display
from captum_fam.explanation.queries import (
    Inputs,
    are_made_by_a_model,
    find_queries_among,
    own_embedding_in_words,
    read_queries,
)
from captum_fam.explanation.result import Explanation
from captum_fam.explanation.supports import SupportLike, SupportReader, float_type_of
from captum_fam.explanation.thumbnails import pictures_of, row_pictures
from captum_fam.similarity import SimilarityLike
from captum_fam.support import (
    Aggregate,
    ContrastedSupport,
    FoilLike,
    SimilarityToSupport,
    Support,
    support_from_tensor,
)
from captum_fam.support.foil import as_foil
from captum_fam.support.labels import check_class_names

if TYPE_CHECKING:
    from PIL.Image import Image

    from captum_fam.visualization import ImageLike


def explain(
    model: ModelLike,
    inputs: Inputs,
    support: SupportLike,
    *,
    layer: LayerLike | None = None,
    method: str | Callable[..., Any] | MapMethod = "fam",
    target: int | str | Sequence[int] | Sequence[str] | Tensor | None = None,
    similarity: SimilarityLike | None = None,
    foil: FoilLike | SupportLike | None = None,
    aggregate: Aggregate = "mean",
    images: Sequence[ImageLike] | Tensor | None = None,
    names: Sequence[str] | None = None,
    class_names: Sequence[str] | None = None,
    batch_size: int = 32,
    preprocess: PreprocessingLike | Callable[[Image], Tensor] | None = None,
    output: Any = None,
    **method_kwargs: Any,
) -> Explanation:
    """Explain why each query matches its class.

    Args:
        model: maps a batch to embeddings ``(B, J)``, in eval mode: a module or a function; a ``(trunk, embedder)`` pair
            or an ``InferenceModel`` of pytorch-metric-learning; an :class:`~captum_fam.models.EmbeddingModel`; or a
            name of :func:`~captum_fam.models.create_model`, which is loaded with its default weights.
        inputs: queries as the model takes them, a tensor or an array of floating-point numbers ``(B, C, *spatial)``; or
            pictures, which get the preprocessing of the model: a path, a folder, the bytes of a file, an image of PIL,
            uint8 pixels ``(H, W, C)``, or a sequence of these.
        support: a :class:`~captum_fam.SupportSet`, a :class:`~captum_fam.MemoryBank`, a
            :class:`~captum_fam.Neighbors` or any other :class:`~captum_fam.Support`; images or embeddings of one class,
            ``(K, ...)`` shared by all queries or ``(B, K, ...)`` with one set per query; pictures of one class, a
            folder of pictures, or a folder of class folders; one list of pictures per query; or a mapping from the name
            of a class to pictures, images or embeddings, such as ``{prompt: text_embedding}``. A query that is among
            its own supports or in its own foil, as the same file or the same bytes, is left out there.
        layer: the layer whose map is made: a module, or its dotted name in ``model``. ``"similarity-cam"`` also takes a
            list of layers, and gives the mean of their maps on the finest of their grids; each of the maps accounts for
            the same score. Default: None, the layer of an ``EmbeddingModel``; for other models
            :func:`~captum_fam.attr.layer_search.find_layer` finds a layer and its token grid by measurement.
        method: ``"fam"``, ``"similarity-cam"``, ``"grad-cam"``, ``"mean-activation"`` or another registered
            name (:func:`~captum_fam.attr.list_methods`); or the class of a layer method of Captum or of your own.
            Maps of several channels are summed over the channels. Default: ``"fam"``.
        target: the class to explain, as index or name: one class for all queries, or one class per query. Default:
            None, the predicted class of each query.
        similarity: a name, a :class:`~captum_fam.similarity.Similarity` or a callable metric. Default: None, the
            similarity of the support or of the model if it has one, else the cosine.
        foil: the score that is subtracted from the score of the class: ``"others"``, ``"runner-up"``, a
            :class:`~captum_fam.SupportSet` or a tensor, as for :class:`~captum_fam.SimilarityToSupport`; or pictures or
            a mapping, as for ``support``. Default: None, no foil.
        aggregate: ``"mean"``, or ``"prototype"`` to compare with the mean embedding of a class, as for
            :class:`~captum_fam.SimilarityToSupport`. Default: ``"mean"``.
        images: the queries for display: tensors or arrays in [0, 1], images of PIL or paths, of any sizes. Default:
            None, the pictures; for tensors the inputs, each scaled to [0, 1] by its smallest and largest value.
        names: names of the queries, which become file names. Default: None, the names of files without their suffix,
            else ``query-0``, ``query-1``, ...
        class_names: C names in the order of the class indices. Default: None, the names in ``support``.
        batch_size: how many queries go through the model at once. Default: 32.
        preprocess: maps an image of PIL to the input of the model, ``(C, H, W)``. Default: None, the preprocessing of
            the model; where it is not known, pictures are resized and normalized as for ImageNet, with a warning.
        output: which part of the output of the model is the embedding: the name of a field, an index or a function.
            Default: None, a tensor, ``image_embeds`` or ``pooler_output``.
        **method_kwargs: further arguments of the method's constructor.

    Returns:
        Maps, scores and accounts of all queries.

    Raises:
        ValueError, TypeError: for arguments that do not fit; the message names the argument.
        UnreadableImageError: (a ``ValueError``) for a picture that cannot be read.

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
        preprocess=preprocess,
        output=output,
        **method_kwargs,
    )
    with collected_notes(1) as notes:
        return explainer.noted(notes, inputs, target=target, images=images, names=names)


class Explainer:
    """:func:`explain` for several batches of queries that share a support.

    Pictures of the support are read and embedded once, and a layer is searched for once, with the first batch.

    Args:
        model, support, layer, method, similarity, foil, aggregate, class_names, batch_size, preprocess, output,
            **method_kwargs: the arguments of :func:`explain` with the same names.

    Raises:
        ValueError, TypeError: as :func:`explain`.

    Example:
        >>> explainer = Explainer(model, support, method="similarity-cam")
        >>> explanations = [explainer.explain(batch) for batch in queries.split(4)]
    """

    def __init__(
        self,
        model: ModelLike,
        support: SupportLike,
        *,
        layer: LayerLike | None = None,
        method: str | Callable[..., Any] | MapMethod = "fam",
        similarity: SimilarityLike | None = None,
        foil: FoilLike | SupportLike | None = None,
        aggregate: Aggregate = "mean",
        class_names: Sequence[str] | None = None,
        batch_size: int = 32,
        preprocess: PreprocessingLike | Callable[[Image], Tensor] | None = None,
        output: Any = None,
        **method_kwargs: Any,
    ) -> None:
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"batch_size must be a whole number of at least 1, got {batch_size!r}")
        self._method = get_method(method)
        self._model = read_model(model, preprocess, output)
        self._class_names = None if class_names is None else check_class_names(class_names)
        self._layer = layer
        self._options = method_kwargs
        self._batch_size = batch_size
        self._layers: ChosenLayers | None = None
        self._attribution: tuple[Any, SimilarityToSupport] | None = None
        self._is_shared = False
        self._reader = SupportReader(
            self._model.forward_func,
            self._model.preprocessing,
            batch_size,
            device_of(self._model.forward_func),
            self._method.needs_images,
        )
        self._support = self._reader.read(support)
        self._support_ids, self._thumbnails = self._reader.ids, self._reader.thumbnails
        if foil is None and isinstance(self._support, ContrastedSupport):
            contrast = self._support
            self._support, foil = contrast.support, contrast.foil
        if isinstance(self._support, Support):
            self._classes_of(self._support)
        named_foil = foil is None or (isinstance(foil, str) and foil in ("others", "runner-up"))
        self._foil = as_foil(foil if named_foil else self._reader.read(foil, "foil"))
        self._foil_ids, self._foil_thumbnails = self._reader.ids, self._reader.thumbnails
        self._score_options: dict[str, Any] = {"similarity": self._similarity(similarity), "aggregate": aggregate}

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
            given = self._support
            support = given if isinstance(given, Support) else support_from_tensor(given, (queries,))
        support.check_queries((queries,), None)
        ids = self._support_ids if is_shared else None
        own = find_queries_among(support, ids, queries, notes)
        own_foil = find_queries_among(self._foil, self._foil_ids, queries, notes, is_foil=True)
        classes = self._classes_of(support)
        targets = class_indices(target, classes, queries)
        check_classes(support, own, self._foil, targets)
        options = {"embeds_supports": ids is not None or are_made_by_a_model(support)}
        embedder = None if self._method.needs_images else self._model.forward_func
        batches = []
        for part in split_queries(support, own, self._foil, own_foil, len(queries), self._batch_size, embedder):
            with numbered_from(part.queries.start):
                attribution, scores = self._make(queries, part, is_shared)
                batch_targets = None if targets is None else targets[part.queries]
                batch = explain_batch(
                    self._method, attribution, scores, queries[part.queries], batch_targets, notes, **options
                )
            batch.support_rows = part.whole_rows(batch.support_rows)
            batches.append(batch)
        self._model.tell(notes)
        joined = join_batches(batches)
        unsaid = ~own.is_only & ~own_foil.is_only
        for name in ("has_own_embedding", "foil_has_own_embedding"):
            if (joined.pop(name).cpu() & unsaid).any():
                notes.append(own_embedding_in_words(support, self._foil, is_foil=name.startswith("foil")))
        are_classes = self._score_options["aggregate"] == "prototype"
        return Explanation(
            method=self._method.name,
            maps=LayerAttribution.interpolate(joined["attributions"], queries.shape[2:], INTERPOLATION[queries.dim()]),
            class_names=classes,
            names=names,
            images=for_display(queries) if images is None else images,
            support_blind=self._method.support_blind,
            notes=tuple(dict.fromkeys([*self._model.told, *notes])),
            about=self._about(scores, support, classes),
            support_pictures=pictures_of(support, self._thumbnails if is_shared else None, own.left_out, are_classes),
            foil_pictures=row_pictures(self._foil, self._foil_thumbnails, own_foil.left_out),
            **joined,
        )

    def _similarity(self, similarity: SimilarityLike | None) -> SimilarityLike | None:
        """The similarity that was asked for, else of the support, else of the model."""
        own = self._support.similarity if isinstance(self._support, Support) else None
        return self._model.similarity if similarity is None and own is None else similarity

    def _classes_of(self, support: Support) -> tuple[str, ...]:
        """The names of the classes; an error if there are not as many as classes."""
        classes = tuple(self._class_names or support.class_names)
        if len(classes) != support.n_classes:
            raise ValueError(f"class_names has {len(classes)} names for the {support.n_classes} classes of the support")
        return classes

    def _make(self, inputs: Tensor, part: Part, is_shared: bool) -> tuple[Any, SimilarityToSupport]:
        """The attribution object and its scores, made once for the support that all queries share, else per batch."""
        is_shared = is_shared and part.is_whole and not part.support.per_query
        if self._attribution is not None and self._is_shared and is_shared:
            return self._attribution
        if self._layers is None:
            given = "token_grid" in self._options
            self._layers = choose_layers(self._model, self._layer, self._method, inputs, measures_grid=not given)
            if self._layers.token_grid is not None:
                self._options = {"token_grid": self._layers.token_grid, **self._options}
        scores = SimilarityToSupport(self._model.forward_func, part.support, foil=part.foil, **self._score_options)
        attribution = self._method.create(scores, self._layers.argument, **self._options)
        if self._attribution is not None and isinstance(attribution, LayerSimilarityCAM):
            # A batch with a support of its own has an object of its own; the user is warned once.
            attribution.has_warned = self._attribution[0].has_warned
        self._attribution, self._is_shared = (attribution, scores), is_shared
        return self._attribution

    def _about(self, scores: SimilarityToSupport, support: Support, classes: tuple[str, ...]) -> dict[str, Any]:
        """Model, preprocessing, layer, similarity, foil, supports and options, as JSON can represent them."""
        foil = getattr(support, "foil", None) if self._foil is None else self._foil
        assert self._layers is not None
        return {
            "model": self._model.name,
            "preprocessing": self._model.used_preprocessing(),
            "layer": self._layers.name,
            "similarity": repr(scores.similarity),
            "foil": foil if isinstance(foil, str) or foil is None else f"{len(foil)} support{'s' * (len(foil) != 1)}",
            "aggregate": scores.aggregate,
            "supports": dict(zip(classes, support.class_counts, strict=True)),
            "options": {key: value if isinstance(value, str) else repr(value) for key, value in self._options.items()},
        }
