"""Explaining queries in one call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from captum_fam._warnings import collected_notes
from captum_fam.explanation.explainer import Explainer, Sides
from captum_fam.explanation.reading.layers import LayerLike
from captum_fam.explanation.reading.methods import MethodsLike
from captum_fam.explanation.reading.model import ModelLike, PreprocessingLike
from captum_fam.explanation.reading.queries import Inputs
from captum_fam.explanation.reading.supports import SupportLike
from captum_fam.explanation.result import Explanation
from captum_fam.similarity import SimilarityLike
from captum_fam.support import Against, Aggregate, FoilLike

if TYPE_CHECKING:
    from PIL.Image import Image

    from captum_fam.visualization import ImageLike


def explain(
    model: ModelLike,
    inputs: Inputs,
    support: SupportLike,
    *,
    layer: LayerLike | None = None,
    method: MethodsLike = None,
    target: int | str | Sequence[int] | Sequence[str] | Tensor | None = None,
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
        method: ``"similarity-cam"``, ``"fam"``, ``"grad-cam"``, ``"mean-activation"`` or another registered name
            (:func:`~captum_fam.attr.list_methods`); the class of a layer method of Captum or of your own; or a sequence
            of these, of which the first gives the explanation and the others stand in its ``beside``. Maps of several
            channels are summed over the channels. Default: None, ``"similarity-cam"``, whose map adds up to the score,
            with the published ``"fam"`` beside it; for a similarity without linear weights ``"fam"`` alone, and for a
            list of layers ``"similarity-cam"`` alone.
        target: the class to explain, as index or name: one class for all queries, or one class per query. Default:
            None, the predicted class of each query.
        similarity: a name, a :class:`~captum_fam.similarity.Similarity` or a callable metric. Default: None, the
            similarity of the support or of the model if it has one, else the cosine.
        foil: the score that is subtracted from the score of the class: ``"others"``, ``"runner-up"``, a
            :class:`~captum_fam.SupportSet` or a tensor, as for :class:`~captum_fam.SimilarityToSupport`; pictures or a
            mapping, as for ``support``; or ``"gallery"``, the mean similarity to a gallery: why more similar than the
            average image. Default: None, no foil.
        gallery: the gallery of ``foil="gallery"``: a bank, a support set, a mean vector ``(J,)``, pictures, or anything
            that ``support`` takes. Default: None, the support itself.
        against: ``"threshold"``: explain the score minus ``threshold``, so that negative values show what the query
            lacks; ``"identity"``: explain what is missing to the score of the query compared with itself. No foil can
            be given beside it. Default: None.
        threshold: the threshold of ``against="threshold"``, in the unit of the score. Default: None.
        aggregate: ``"mean"``, or ``"prototype"`` to compare with the mean embedding of a class, as for
            :class:`~captum_fam.SimilarityToSupport`. Default: ``"mean"``.
        smooth: the side, in cells of the layer (the finest of several), of a mean filter over every map
            (:func:`~captum_fam.functional.smooth_maps`), an odd number. The sum of a map stays, and with it coverage
            and shares; detail below the window is gone. Of pairs the maps of both sides are smoothed, the matches and
            the decomposition are not. Default: 1, no filter.
        sides: ``"both"`` also makes the maps of the supports, and finds which positions match:
            :attr:`Explanation.pairs`. The support must hold images. As the query is left out of its own gallery, or of
            its own foil of images, so is each support on its own side. Default: ``"query"``.
        top: for how many supports of each query ``sides="both"`` makes maps, the most similar first. Default: 5.
        top_matches: how many matches of positions each of these supports lists, those with the largest shares. They
            take one way back through the layers behind the explained layer for each of its positions, or for each
            feature of the embedding, whichever is less: behind many layers, such as the blocks of a transformer, this
            is most of the time. 0 leaves the matches out: :attr:`Pair.matches
            <captum_fam.explanation.pairs.pair.Pair.matches>` is empty and there is no decomposition; the maps of both
            sides and their accounts stay. Default: 16.
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
        **method_kwargs: further arguments of the constructors of the methods; each method gets those that it takes.

    Returns:
        Maps, scores and accounts of all queries.

    Raises:
        ValueError, TypeError: for arguments that do not fit, or that no method takes; the message names the argument.
        UnreadableImageError: (a ``ValueError``) for a picture that cannot be read.

    Example:
        >>> why = explain(model, queries, SupportSet(images, labels), foil="others")
        >>> why
        Explanation(8 queries, similarity-cam, beside: fam, layer 'layer4', foil others)
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
        gallery=gallery,
        against=against,
        threshold=threshold,
        aggregate=aggregate,
        smooth=smooth,
        sides=sides,
        top=top,
        top_matches=top_matches,
        class_names=class_names,
        batch_size=batch_size,
        preprocess=preprocess,
        output=output,
        **method_kwargs,
    )
    with collected_notes(1) as notes:
        return explainer.noted(notes, inputs, target=target, images=images, names=names)
