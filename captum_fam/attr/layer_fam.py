"""The Feature Activation Map as a Captum layer attribution."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from captum_fam import functional as F
from captum_fam._arithmetic import plain_arithmetic
from captum_fam.attr._layer_run import LayerRun
from captum_fam.attr.base import SimilarityLayerAttribution
from captum_fam.attr.call import LayerCall, LayerMaps
from captum_fam.attr.tokens import TokenGridLike
from captum_fam.attr.way_back.way import NO_WAY_BACK, UnitNorm
from captum_fam.rounding import drop_rounding
from captum_fam.similarity import SimilarityLike
from captum_fam.support import Comparison

Weighting = Literal["paper", "weights", "contributions"]
Normalization = Literal["minmax", "relu", "maxabs", "none", "auto"]
SupportScale = Literal["paper", "none"]
Transform = Literal["auto"] | nn.Module | Tensor | None


_NORMALIZATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "minmax": F.minmax,
    "relu": F.rectify,
    "maxabs": F.maxabs,
    "none": lambda contributions: contributions,
}


class LayerFAM(SimilarityLayerAttribution):
    r"""Feature Activation Map (FAM) of a model that decides by similarity instead of a classifier layer.

    The contribution of each feature of the embedding to the query-support similarity (Eq. 15) becomes a contribution
    of each channel of the layer (Eq. 18). The contributions are scaled to [0, 1] over the channels (Eq. 12) and weigh
    the activation maps of the layer: :math:`L = \sum_n \bar c_n A^n` (Eq. 13). One forward pass serves any number of
    supports; no graph of the backbone is kept. The defaults are the method as published.

    What to know before trusting a map:

    - The weight of a channel is a contribution, which has the activation :math:`z_n` as a factor already. The map is
      therefore quadratic in the activation and does not sum to the similarity. The map of
      :class:`LayerSimilarityCAM` does.
    - Eq. 12 gives channels without a contribution the weight -min C / (max C - min C). Where contributions have both
      signs (linear heads, leaky activations), most of the map can be the plain sum of the activations, which is the
      same for every support. A warning is given where this part is more than half of the map.
    - :math:`1/|s_k|` in Eq. 15 gives the least similar of several supports the largest weight. The gallery of
      ``foil="gallery"`` is one support, whose score is the mean similarity; a :class:`~captum_fam.SupportSet` of the
      same images as the foil has this factor for each image, and another map.
    - Maps are as coarse as the layer. The receptive field of a unit is larger than the cell of the unit in the map.

    A score with a foil (:class:`~captum_fam.SimilarityToSupport`) is signed. All equations but Eq. 12 apply to such a
    score; Eq. 12 would erase the sign, so that by default the contributions of such a score are not scaled.

    Args:
        forward_func: an embedding model, ``forward_func(x) -> (B, J)``, or a
            :class:`~captum_fam.SimilarityToSupport`, which has a support, a similarity and a foil already.
        layer: the layer whose tensor feeds the pooling, after the last activation function: a module, its dotted name,
            or a list of modules and names.
        device_ids: order of the devices of a ``DataParallel`` model that ``forward_func`` runs. With
            ``transform="auto"`` or a module as ``transform``, a DataParallel model of several devices runs on one
            device. Default: None, the ``device_ids`` of ``forward_func``.
        similarity: ``"cosine"``, ``"dot"``, ``"euclidean"``, ``"squared-euclidean"``, a
            :class:`~captum_fam.similarity.Similarity`, or a differentiable function of two batches of embeddings.
            Default: "cosine".
        transform: how contributions of the features of the embedding become contributions of the channels. Default:
            "auto".

            - ``"auto"``: one backward pass from the embedding to the layer. The pass equals Eq. 15 for a pooling (GAP,
              GMP, LSE) without a head, and Eq. 18 for a pooling with a linear head. A final normalization is detected
              and left out. A head that is not homogeneous of degree one is followed to first order.
            - a ``torch.nn.Linear`` or its weight ``(J, N)``: Eq. 18 in closed form.
            - another module of the model: the vector-Jacobian product of this module at its input.
            - None: the embedding is the pooled layer, J = N.

            The derivative of a GeM pooling does not sum to one over the positions: Eq. 15 needs the head or None there.
        weighting: the weight of a channel. ``"paper"``: C = W c', Eq. 18 as printed; ``"weights"``: W u with the linear
            weights u of the similarity, as in CAM; ``"contributions"``: z_n (W u)_n, which sums to the similarity minus
            the share of the bias. Default: "paper".
        normalization: how contributions are scaled over the channels. ``"minmax"``: Eq. 12; ``"relu"``: negative
            contributions become zero and the largest one becomes 1; ``"maxabs"``: the largest magnitude becomes 1;
            ``"none"``: not scaled; ``"auto"``: ``"none"`` for a query whose score has a foil, else ``"minmax"``.
            Default: "auto".
        support_scale: ``"paper"`` divides by \|s_k\| (Eq. 15), but at least by 1e-6 of the largest possible
            \|s_k\|. The largest possible value is 1 for the cosine and the product of the norms for the dot product
            (:meth:`Similarity.bound <captum_fam.similarity.Similarity.bound>`). ``"none"`` does not divide, so that
            contributions sum to S. Default: "paper".
        unit_norm: whether the embedding is another vector times one number per sample, as behind a final
            normalization. ``transform="auto"`` leaves the normalization out. True: raise an error for an embedding
            that is not normalized; False: never leave a normalization out; ``"auto"``: as measured in the call, see
            ``details(...).detected``. Default: "auto".
        token_grid: rearranges the tensors of the layer into ``(B, N, *spatial)``, such as a
            :class:`~captum_fam.TokenGrid`. Default: None, the tensors have that form.

    Raises:
        ValueError: for an unknown option; for a similarity without linear weights where ``weighting`` is not
            ``"paper"``; for ``weighting="contributions"`` with a weight as ``transform``; as
            :class:`SimilarityLayerAttribution`.
        TypeError: for another kind of ``transform``; as :class:`SimilarityLayerAttribution`.

    Example:
        >>> model = torchvision.models.resnet18(weights="DEFAULT").eval()
        >>> model.fc = torch.nn.Identity()
        >>> fam = LayerFAM(model, model.layer4)
        >>> attributions = fam.attribute(queries, support=images_of_one_class)  # (B, 1, 7, 7)
        >>> heatmap = LayerFAM.interpolate(attributions, queries.shape[2:], "bilinear")

    Reference: Liao, Gao and Zhang, "Feature Activation Map: Visual Explanation of Deep Learning Models for Image
    Classification", https://arxiv.org/abs/2307.05017. Numbers of equations are those of this paper.
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        layer: nn.Module | str | Sequence[nn.Module | str],
        device_ids: list[int] | None = None,
        *,
        similarity: SimilarityLike = "cosine",
        transform: Transform = "auto",
        weighting: Weighting = "paper",
        normalization: Normalization = "auto",
        support_scale: SupportScale = "paper",
        unit_norm: UnitNorm = "auto",
        token_grid: TokenGridLike | None = None,
    ) -> None:
        super().__init__(forward_func, layer, device_ids, similarity=similarity, token_grid=token_grid)
        _check_choice("weighting", weighting, get_args(Weighting))
        _check_choice("normalization", normalization, get_args(Normalization))
        _check_choice("support_scale", support_scale, get_args(SupportScale))
        _check_choice("unit_norm", unit_norm, ("auto", True, False))
        if not (transform is None or isinstance(transform, nn.Module | Tensor) or transform == "auto"):
            raise TypeError(f'transform must be "auto", a module, a linear head\'s weight or None, got {transform!r}')
        if isinstance(transform, Tensor) and weighting == "contributions":
            raise ValueError(
                'weighting="contributions" needs the vector that goes into the head: '
                'pass the head itself as transform, or transform="auto"'
            )
        if weighting != "paper":
            self.similarity.require_weights()
        self.transform = transform
        self.weighting = weighting
        self.normalization = normalization
        self.support_scale = support_scale
        self.unit_norm = unit_norm
        self._warned = False

    @classmethod
    def get_name(cls) -> str:
        return "Layer FAM"

    def map_layers(self, call: LayerCall) -> LayerMaps:
        """Eq. 15 on the embedding, Eq. 18 on the channels, Eq. 12 over the channels, Eq. 13 at the positions."""
        with plain_arithmetic(call.run.embedding.device):
            on_embedding = self._contributions(call.comparison)
            contributions = self._on_channels(call.run, on_embedding, call.activations)
            maps = []
            for tensors, on_channels in zip(call.activations, contributions, strict=True):
                weights = [self._normalized(of_tensor, call.comparison.with_foil) for of_tensor in on_channels]
                pairs = zip(tensors, weights, strict=True)
                maps.append(tuple(_weighted(activation, weight, call.sum_channels) for activation, weight in pairs))
            self._note_support_blindness(call, contributions)
        return LayerMaps(maps, contributions)

    def recording(self) -> dict[str, Any]:
        """What to record: nothing where Eq. 18 has a closed form, else the way back to the layer or to the head."""
        if self.transform is None or isinstance(self.transform, Tensor):
            return {}
        if self.transform == "auto":
            return {"tape": True, "unit_norm": self.unit_norm}
        if isinstance(self.transform, nn.Linear) and self.weighting != "contributions":
            return {}
        return {"tape": True, "head": self.transform}

    def _contributions(self, comparison: Comparison) -> Tensor:
        """Eq. 15: contributions c' of the features of the embedding, or their linear weights u; ``(B, J)``."""
        return comparison.of_features(self._of_supports, are_weights=self.weighting != "paper")

    def _of_supports(self, comparison: Comparison, as_one: bool) -> tuple[Tensor, Tensor]:
        """The weights of the supports ``(B, K)``, and what they give to the features ``(B, J)``."""
        are_weights = self.weighting != "paper"
        measure = self.similarity.weights if are_weights else self.similarity.contributions
        weights = comparison.support_weights
        if self.support_scale == "none":
            return weights, comparison.over_supports(measure, weights)
        query, explained = comparison.query, comparison.explained
        ones = torch.ones_like(weights)
        bound = comparison.over_supports(lambda query, support, _: self.similarity.bound(query, support), ones)
        if as_one:
            scores, largest = (weights * explained).sum(1, keepdim=True), (weights * bound).sum(1, keepdim=True)
        else:
            scores, largest = explained, bound
        # w_k / |s_k|, and the error that the rounding of a small s_k makes in these shares.
        shares = F.support_shares(weights, scores, largest)
        errors = shares.abs() * F.shares_rounding(scores, query.shape[1], largest)
        values = drop_rounding(
            comparison.over_supports(measure, shares),
            query,
            are_weights=are_weights,
            bound=(errors * bound).sum(1, keepdim=True),
            noise=lambda: comparison.over_supports(self.similarity.terms, errors),
        )
        return shares, values

    def _on_channels(
        self, run: LayerRun, cotangent: Tensor, activations: list[tuple[Tensor, ...]]
    ) -> list[tuple[Tensor, ...]]:
        """Eq. 18: contributions C of the channels, ``(B, N)`` for every tensor of every layer."""
        is_contribution = self.weighting == "paper"
        if self.transform == "auto":
            contributions = [self._on_layer(way.pull(cotangent, is_contribution)) for way in run.ways]
            # Contributions that are all zero mean that no gradient reached the layer. Eq. 12 would turn them into the
            # plain sum of the activations.
            if cotangent.any() and not all(any(tensor.any() for tensor in tensors) for tensors in contributions):
                raise ValueError(NO_WAY_BACK)
            return contributions
        if self.transform is None:
            weight = cotangent * run.embedding if self.weighting == "contributions" else cotangent
        elif self.recording():
            # A head that runs once per view adds up over its passes.
            passes = run.ways[0].pull(cotangent, is_contribution)
            weight = sum(
                (self._sum_positions(gradient.flatten(1), tensor.flatten(1)) for ((gradient, tensor),) in passes[1:]),
                start=self._sum_positions(*(tensor.flatten(1) for tensor in passes[0][0])),
            )
        else:
            matrix = self.transform.weight if isinstance(self.transform, nn.Module) else self.transform
            weight = F.transform_contributions(cotangent, _head_weight(matrix, cotangent))
        for tensors in activations:
            for tensor in tensors:
                if tensor.shape[1] != weight.shape[1]:
                    raise ValueError(
                        f"transform gives contributions to {weight.shape[1]} channels but the layer has "
                        f'{tensor.shape[1]}; pass the head that takes the pooled layer, or transform="auto"'
                    )
        return [(weight,) * len(tensors) for tensors in activations]

    def _on_layer(self, passes: list[list[tuple[Tensor, Tensor]]]) -> tuple[Tensor, ...]:
        """Contributions C of the channels for every tensor of a layer, summed over the views of the input."""
        grid = self.token_grid or (lambda tensor: tensor)
        per_view = [
            [self._sum_positions(grid(gradient), grid(activation)) for gradient, activation in pairs]
            for pairs in passes
        ]
        return tuple(
            torch.stack(tensors).sum(0) if len(tensors) > 1 else tensors[0] for tensors in zip(*per_view, strict=True)
        )

    def _sum_positions(self, gradient: Tensor, tensor: Tensor) -> Tensor:
        """The gradient on ``(B, N, *spatial)``, or gradient x activation, summed over the positions: ``(B, N)``."""
        gradient = F.widen(gradient)
        if self.weighting == "contributions":
            gradient = gradient * tensor
        return gradient.flatten(2).sum(2) if gradient.dim() > 2 else gradient

    def _normalized(self, contributions: Tensor, with_foil: Tensor) -> Tensor:
        """Eq. 12: the weight of each channel, ``(B, N)``; another scale where ``normalization`` says so."""
        if self.normalization != "auto":
            return _NORMALIZATIONS[self.normalization](contributions)
        return torch.where(with_foil.unsqueeze(1), contributions, F.minmax(contributions))

    def _note_support_blindness(self, call: LayerCall, contributions: list[tuple[Tensor, ...]]) -> None:
        """Add a warning, once per object, where most of a map is the plain sum of activations."""
        if self._warned or self.normalization not in ("auto", "minmax"):
            return
        pairs = [
            pair
            for activations_and_contributions in zip(call.activations, contributions, strict=True)
            for pair in zip(*activations_and_contributions, strict=True)
        ]
        blind = torch.stack(
            [F.support_blind_share(activation, on_channels) > 0.5 for activation, on_channels in pairs]
        ).any(0)
        if (blind & ~call.comparison.with_foil if self.normalization == "auto" else blind).any():
            self._warned = True
            other = "LayerSimilarityCAM, or " if call.comparison.similarity.has_weights else ""
            call.notes.append(
                "more than half of a map's energy is the plain sum of activations, the same for every support: "
                f"Eq. 12 lifts contributions of both signs. Use {other}a foil with normalization='auto'"
            )


def _weighted(activation: Tensor, weights: Tensor, sum_channels: bool) -> Tensor:
    """Eq. 13: the weighted activation maps ``(B, N, *spatial)``, or their sum over the channels."""
    if sum_channels:
        return F.activation_map(activation, weights)
    return F.widen(activation) * weights.reshape(*weights.shape, *[1] * (activation.dim() - 2))


def _head_weight(matrix: object, cotangent: Tensor) -> Tensor:
    """The weight of a linear head, ``(J, N)``, detached, with the dtype and device of ``cotangent``."""
    shape = tuple(matrix.shape) if isinstance(matrix, Tensor) else ()
    if not isinstance(matrix, Tensor) or matrix.dim() != 2 or matrix.shape[0] != cotangent.shape[1]:
        raise ValueError(f"transform has a weight of shape {shape}, expected (J, N) with J = {cotangent.shape[1]}")
    return matrix.detach().to(cotangent)


def _check_choice(name: str, value: object, choices: tuple[object, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")
