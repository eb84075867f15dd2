"""Positions of a query against positions of a support image: where each pair of positions adds to their similarity."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from captum_fam._captum import format_additional_forward_args, format_tensors
from captum_fam._training_mode import training_mode_in_words
from captum_fam._warnings import collected_notes
from captum_fam.attr.account import Biases
from captum_fam.attr.base import SimilarityLayerAttribution
from captum_fam.attr.embedding_parts import EmbeddingParts
from captum_fam.attr.image_run import ImageRun, not_recorded
from captum_fam.attr.layer_similarity_cam import LayerSimilarityCAM
from captum_fam.attr.pair_decomposition import PairDecomposition
from captum_fam.attr.tokens import TokenGridLike
from captum_fam.similarity import Similarity, SimilarityLike


class LayerPairs:
    r"""The exact decomposition of a similarity into pairs of positions, one of each image.

    The embedding of an image is a sum over the positions of a layer and named other parts, with every scale of the
    network held (:class:`~captum_fam.LayerSimilarityCAM`): :math:`Z = \sum_q E_q + \dots` for the query,
    :math:`t = \sum_p F_p + \dots` for the support. For a similarity with linear weights :math:`u = G t + \dots`, G is a
    matrix, and the share of a pair of positions is

    .. math:: D_{qp} = \langle E_q, G F_p \rangle.

    For the cosine this is :math:`\langle E_q, F_p \rangle / \|Z\| \|t\|`. Summed over p, together with the other parts
    of the support, D is the map of the query, as LayerSimilarityCAM computes it. Summed over q, together with the other
    parts of the query, D is the map of the support. The sum of all pairs, with all named parts, is the score.

    A share says how much of the score of the model comes from two positions together, which is not how similar the
    positions look: :class:`~captum_fam.LayerCorrespondence` compares positions, and does not use the head.

    Args:
        forward_func: an embedding model, ``forward_func(x) -> (B, J)``, or a
            :class:`~captum_fam.SimilarityToSupport`, whose model and similarity are used; its support and foil are not.
        layer: a module, or its dotted name in ``forward_func``.
        similarity: the similarity that the model decides with: a name or a
            :class:`~captum_fam.similarity.Similarity` with linear weights. Default: "cosine".
        token_grid: rearranges the tensor of the layer into ``(B, N, *spatial)``, such as a
            :class:`~captum_fam.TokenGrid`. Default: None, the tensor has that form.
        biases: ``"positions"`` adds a bias to the vectors of the positions where it acts; ``"apart"`` makes biases a
            part of their own. Default: "positions".

    Raises:
        ValueError: for a similarity without linear weights, a name that the model does not have, or unknown ``biases``.
        TypeError: for a list of layers, or a layer that is neither a module nor a name.

    Example:
        >>> from captum_fam.attr import LayerPairs
        >>> pairs = LayerPairs(model, model.layer4)
        >>> parts = pairs.run(queries[:2]).parts()
        >>> pair = pairs.decompose(parts[0], parts[1])
        >>> pair.query_map.shape, pair.support_map.shape, len(pair.top_matches(5))
        (torch.Size([7, 7]), torch.Size([7, 7]), 5)
        >>> bool(abs(pair.matrix().sum() - pair.score) < 1e-5)
        True
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        layer: nn.Module | str,
        *,
        similarity: SimilarityLike = "cosine",
        token_grid: TokenGridLike | None = None,
        biases: Biases = "positions",
    ) -> None:
        if not isinstance(layer, nn.Module | str):
            raise TypeError(f"layer must be one module or name, got {type(layer).__name__}")
        self._cam = LayerSimilarityCAM(forward_func, layer, similarity=similarity, token_grid=token_grid, biases=biases)

    @property
    def similarity(self) -> Similarity:
        """The similarity of the pairs."""
        return self._cam.similarity

    def run(self, inputs: Tensor | tuple[Tensor, ...], additional_forward_args: object = None) -> ImageRun:
        """Run the model once for a batch of images, and keep the way back from the embeddings to the layer.

        Args:
            inputs: images, ``(B, C, H, W)``, or a tuple of the model's input tensors.
            additional_forward_args: further arguments of ``forward_func``. Default: None.

        Raises:
            ValueError: for an empty batch; for a layer that does not run, that has no positions, or that the embedding
                does not depend on; for an embedding with NaN or inf.
        """
        with collected_notes(1) as notes:
            return self.noted_run(notes, inputs, additional_forward_args)

    def noted_run(
        self, notes: list[str], inputs: Tensor | tuple[Tensor, ...], additional_forward_args: object = None
    ) -> ImageRun:
        """The same as :meth:`run`, but the texts of warnings are added to ``notes``."""
        formatted = format_tensors(inputs)
        args = format_additional_forward_args(additional_forward_args)
        if formatted[0].numel() == 0:
            raise ValueError(f"inputs is an empty batch, shape {tuple(formatted[0].shape)}")
        notes += filter(None, [training_mode_in_words(self._cam.model)])
        run = self._cam.run_model(formatted, args, False, notes, keep_graph=True)
        self._cam.passes_of(run)  # raises the error for a layer without positions
        return ImageRun(self._cam, formatted, args, run)

    def gives_maps_of(self, attribution: SimilarityLayerAttribution) -> bool:
        """Whether :meth:`ImageRun.maps <captum_fam.attr.ImageRun.maps>` makes the maps of a method of this layer.

        Args:
            attribution: a method of the same model and layer.
        """
        return not not_recorded(self._cam, attribution)

    def decompose(self, query: EmbeddingParts, support: EmbeddingParts) -> PairDecomposition:
        """The pair decomposition of the similarity of two images.

        Args:
            query: the parts of one image, ``run.parts()[i]``.
            support: the parts of one image, of the same or another run.

        Raises:
            TypeError: for anything but parts.
            ValueError: for parts of several images, or of embeddings that do not fit together.
        """
        return PairDecomposition(query, support, self._cam.similarity)
