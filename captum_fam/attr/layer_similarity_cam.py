"""The exact additive map of a similarity as a Captum layer attribution."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from captum._utils.typing import TargetType
from captum.log import log_usage
from torch import Tensor, nn

from captum_fam import functional as F
from captum_fam.attr._similarity_attribution import Comparison, Maps, SimilarityLayerAttribution, TokenGridLike
from captum_fam.similarity import SimilarityLike
from captum_fam.support import plain_arithmetic


class SimilarityCAMDetails(NamedTuple):
    """Everything :class:`LayerSimilarityCAM` computed on its way to the maps.

    Attributes:
        attributions: what ``attribute`` returns.
        convergence_delta: the sum of the attributions less the explained score, ``(B,)``; a list for a list of layers.
        comparison: scores, classes and support weights.
    """

    attributions: Maps
    convergence_delta: Tensor | list[Tensor]
    comparison: Comparison


class LayerSimilarityCAM(SimilarityLayerAttribution):
    r"""Class activation map of a similarity: every position's share of the score, adding up to it.

    With u the linear weights of the similarity at the embedding (for the cosine, the mean unit support over
    the query's norm) and the norm held constant, the map is :math:`M_p = \sum_n A_{n,p}\, \partial \langle Z', u
    \rangle / \partial A_{n,p}`. For average pooling and a linear head W this is :math:`\frac1P \sum_n (W \bar t)_n
    A_{n,p} / \|Z'\|`, CAM with the support in the place of the classifier's weights.

    The map sums to the explained score (``convergence_delta`` 0) for poolings that are homogeneous of degree
    one (GAP, GMP, and GeM up to the 1e-6 it pools a dead channel to) and heads without a bias; a bias owns no
    position, and its share is the delta. Other heads (LSE pooling, an MLP with biases, a deeper layer) are followed
    to first order, and the delta says how much that misses. With a foil the map is signed and sums to the
    difference of the scores.

    For distances the explained score counts from the zero vector: see :mod:`captum_fam.similarity`.

    Args:
        forward_func: an embedding model, ``forward_func(x) -> (B, J)``, or a
            :class:`~captum_fam.SimilarityToSupport`, which brings its support, similarity and foil.
        layer: a module, its dotted name in ``forward_func``, or a list of these.
        device_ids: for the same signature as all layer methods of Captum; the pass is made on one device.
        similarity: the measure the model decides with.
        token_grid: rearranges the layer's tensors into ``(B, N, *spatial)``: :class:`~captum_fam.TokenGrid`.
            Tokens that it drops keep their share, which then is part of the delta.

    Raises:
        ValueError: for a measure without linear weights: a distance with ``rule="difference"``.

    Example:
        >>> cam = LayerSimilarityCAM(SimilarityToSupport(model, support, foil="others"), model.layer4)
        >>> attributions, delta = cam.attribute(queries, target=3, return_convergence_delta=True)
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        layer: nn.Module | str | Sequence[nn.Module | str],
        device_ids: list[int] | None = None,
        *,
        similarity: SimilarityLike = "cosine",
        token_grid: TokenGridLike | None = None,
    ) -> None:
        super().__init__(forward_func, layer, device_ids, similarity=similarity, token_grid=token_grid)
        self.similarity.require_weights()

    @classmethod
    def get_name(cls) -> str:
        return "Layer Similarity CAM"

    def has_convergence_delta(self) -> bool:
        return True

    @log_usage()
    def attribute(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        support: object = None,
        target: TargetType = None,
        additional_forward_args: object = None,
        attribute_to_layer_input: bool = False,
        relu_attributions: bool = False,
        attr_dim_summation: bool = True,
        return_convergence_delta: bool = False,
    ) -> Any:
        """Compute the map of every query.

        Args:
            inputs: queries, ``(B, C, H, W)``, or a tuple of the model's input tensors.
            support: as in :meth:`LayerFAM.attribute <captum_fam.LayerFAM.attribute>`.
            target: the class to explain, in any form that Captum takes; None: the predicted class.
            additional_forward_args: further arguments of ``forward_func``.
            attribute_to_layer_input: explain the input of the layer instead of its output.
            relu_attributions: cut negative values of the map at zero, after the delta was taken.
            attr_dim_summation: sum over the channels; False keeps the share of each channel and position.
            return_convergence_delta: also return how far the map's sum is from the explained score.

        Returns:
            *Tensor* or *tuple[Tensor, ...]* of **attributions**, ``(B, 1, *spatial)`` of the layer, or
            ``(B, N, *spatial)`` without summation; detached, in float32 at least. A tuple where the layer
            gives several tensors; a list where ``layer`` is one. With ``return_convergence_delta`` a pair with
            **delta**, ``(B,)``, the sum of the attributions less the explained score; a list for a list of
            layers.

        Raises:
            ValueError, TypeError: for a support or layer that does not fit; the message says which.
            AssertionError: for a target that Captum refuses.
        """
        details = self.details(
            inputs,
            support,
            target,
            additional_forward_args,
            attribute_to_layer_input,
            relu_attributions,
            attr_dim_summation,
        )
        if not return_convergence_delta:
            return details.attributions
        return details.attributions, details.convergence_delta

    def details(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        support: object = None,
        target: TargetType = None,
        additional_forward_args: object = None,
        attribute_to_layer_input: bool = False,
        relu_attributions: bool = False,
        attr_dim_summation: bool = True,
    ) -> SimilarityCAMDetails:
        """As :meth:`attribute`, with the delta, scores and classes beside the maps."""
        run, comparison = self._compare(
            inputs, support, target, additional_forward_args, attribute_to_layer_input, tape=True
        )
        self._activations(run)
        with plain_arithmetic(run.embedding.device):
            weights = comparison.over_supports(self.similarity.weights, comparison.support_weights)
            shares = [
                tuple(F.widen(gradient) * tensor for gradient, tensor in pairs)
                for pairs in self._pulled_to_layers(run, weights, frozen_norm=True)
            ]
            deltas = [_delta(tensors, comparison) for tensors in shares]
            if attr_dim_summation:
                shares = [tuple(share.sum(1, keepdim=True) for share in tensors) for tensors in shares]
        single = isinstance(self.layer, nn.Module | str)
        return SimilarityCAMDetails(
            self._format(shares, relu_attributions), deltas[0] if single else deltas, comparison
        )


def _delta(shares: tuple[Tensor, ...], comparison: Comparison) -> Tensor:
    explained = (comparison.support_weights * comparison.explained).sum(1)
    return sum((share.flatten(1).sum(1) for share in shares), start=-explained)
