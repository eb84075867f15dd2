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

    The contribution of each feature of the embedding to the query-support similarity (Eq. 15) is carried over
    to the channels of the layer (Eq. 18), scaled to [0, 1] over the channels (Eq. 12), and weighs the layer's
    activation maps: :math:`L = \sum_n \bar c_n A^n` (Eq. 13). One forward pass serves any number of supports;
    no graph is kept of the backbone. The defaults are the method as published.

    What to know before trusting a map:

    - A weight is a contribution and holds :math:`z_n` already, so that the map is quadratic in the activation
      and does not sum to the similarity: :class:`LayerSimilarityCAM` does.
    - Eq. 12 gives channels that contribute nothing the weight -min C / (max C - min C). Where contributions
      have both signs (linear heads, leaky activations) most of the map can be the plain sum of activations,
      the same for every support. A warning is given when that share passes one half.
    - :math:`1/|s_k|` in Eq. 15 gives the least similar of several supports the largest weight.
    - Maps are as coarse as the layer; what a unit sees is larger than the cell it stands in.

    The signed score of a foil (:class:`~captum_fam.SimilarityToSupport`) goes through the same equations but for
    Eq. 12, which would erase its sign: contributions stay as they are where the explained score has a foil.

    Args:
        forward_func: an embedding model, ``forward_func(x) -> (B, J)``, or a
            :class:`~captum_fam.SimilarityToSupport`, which brings its support, similarity and foil.
        layer: the tensor that feeds the pooling, after the last activation function: a module, its dotted
            name, or a list of these.
        device_ids: order of the devices, where ``forward_func`` runs a DataParallel model of its own. With
            ``transform="auto"`` or a module a DataParallel model of several devices is run on one.
        similarity: ``"cosine"``, ``"dot"``, ``"euclidean"``, ``"squared-euclidean"``, a
            :class:`~captum_fam.similarity.Similarity`, or a differentiable metric of two batches.
        transform: how contributions on the embedding become contributions on the channels.
            ``"auto"``: one backward pass from the embedding to the layer, through the head alone. It equals
            Eq. 15 for a pooling (GAP, GMP, LSE) without a head and Eq. 18 for a pooling and a linear head; a
            final normalization is recognised and left out; a head that is not homogeneous of degree one is
            followed to first order.
            A ``torch.nn.Linear`` or its weight ``(J, N)``: Eq. 18 in closed form.
            Another module of the model: its vector-Jacobian product at its own input.
            With GeM, whose derivative does not sum to one over the positions, Eq. 15 needs the head or None.
            None: the embedding is the pooled layer, J = N.
        weighting: ``"paper"``, Eq. 18 as printed, C = W c'; ``"weights"``, W u with the similarity's linear
            weights u, as in CAM; ``"contributions"``, z_n (W u)_n, which sums to the similarity less the
            bias's share.
        normalization: of the contributions over the channels: ``"minmax"`` (Eq. 12), ``"relu"`` (negative
            ones cut, largest one), ``"maxabs"`` (largest magnitude one), ``"none"``; default, ``"auto"``:
            ``"minmax"``, and ``"none"`` for a query whose score has a foil.
        support_scale: ``"paper"`` divides by \|s_k\| (Eq. 15), at least 1e-6 of the most that it can be: 1 for the
            cosine, the product of the norms for the dot product (:meth:`Similarity.bound
            <captum_fam.similarity.Similarity.bound>`); ``"none"`` does not, and contributions sum to S.
        unit_norm: whether the embedding is a vector times one number per sample, as behind a final normalization, which
            ``transform="auto"`` leaves out. ``"auto"``: as measured in this call, see ``details(...).detected``; True
            refuses an embedding that is not; False follows the embedding itself.
        token_grid: rearranges the layer's tensors into ``(B, N, *spatial)``: :class:`~captum_fam.TokenGrid`.

    Example:
        >>> model = torchvision.models.resnet18(weights="DEFAULT").eval()
        >>> model.fc = torch.nn.Identity()
        >>> fam = LayerFAM(model, model.layer4)
        >>> attributions = fam.attribute(queries, support=images_of_one_class)  # (B, 1, 7, 7)
        >>> heatmap = LayerFAM.interpolate(attributions, queries.shape[2:], "bilinear")

    Reference: Liao, Gao and Zhang, "Feature Activation Map: Visual Explanation of Deep Learning Models for Image
    Classification", https://arxiv.org/abs/2307.05017.
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
                weights = [self._normalized(c, call.comparison.with_foil) for c in on_channels]
                pairs = zip(tensors, weights, strict=True)
                maps.append(tuple(_weighted(activation, weight, call.sum_channels) for activation, weight in pairs))
            self._note_support_blindness(call, contributions)
        return LayerMaps(maps, contributions)

    def recording(self) -> dict[str, Any]:
        return self._tape()

    def _tape(self) -> dict[str, Any]:
        if self.transform is None or isinstance(self.transform, Tensor):
            return {}
        if self.transform == "auto":
            return {"tape": True, "unit_norm": self.unit_norm}
        if isinstance(self.transform, nn.Linear) and self.weighting != "contributions":
            return {}
        return {"tape": True, "head": self.transform}

    def _contributions(self, comparison: Comparison) -> Tensor:
        """Eq. 15, c' on the features of the embedding; with other weightings the linear weights u. ``(B, J)``."""
        are_weights = self.weighting != "paper"
        measure = self.similarity.weights if are_weights else self.similarity.contributions
        weights = comparison.support_weights
        if self.support_scale == "none":
            return comparison.over_supports(measure, weights)
        query, explained = comparison.query, comparison.explained
        every = torch.ones_like(weights)
        bound = comparison.over_supports(lambda query, support, _: self.similarity.bound(query, support), every)
        shares = F.support_shares(weights, explained, bound)
        errors = shares.abs() * F.shares_rounding(explained, query.shape[1], bound)
        return drop_rounding(
            comparison.over_supports(measure, shares),
            query,
            are_weights=are_weights,
            bound=(errors * bound).sum(1, keepdim=True),
            noise=lambda: comparison.over_supports(self.similarity.terms, errors),
        )

    def _on_channels(
        self, run: LayerRun, cotangent: Tensor, activations: list[tuple[Tensor, ...]]
    ) -> list[tuple[Tensor, ...]]:
        """C for every tensor of every layer, ``(B, N)``."""
        is_contribution = self.weighting == "paper"
        if self.transform == "auto":
            contributions = [self._on_layer(way.pull(cotangent, is_contribution)) for way in run.ways]
            # Eq. 12 would make the plain sum of activations of contributions that are all zero.
            if cotangent.any() and not all(any(one.any() for one in tensors) for tensors in contributions):
                raise ValueError(NO_WAY_BACK)
            return contributions
        if self.transform is None:
            weight = cotangent * run.embedding if self.weighting == "contributions" else cotangent
        elif self._tape():
            passes = run.ways[0].pull(cotangent, is_contribution)
            weight = sum(
                (self._sum_positions(gradient.flatten(1), tensor.flatten(1)) for ((gradient, tensor),) in passes[1:]),
                start=self._sum_positions(*(one.flatten(1) for one in passes[0][0])),
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
        """C for every tensor of a layer; contributions of several views of the input add up."""
        grid = self.token_grid or (lambda tensor: tensor)
        each = [[self._sum_positions(grid(g), grid(a)) for g, a in pairs] for pairs in passes]
        return tuple(
            torch.stack(tensors).sum(0) if len(tensors) > 1 else tensors[0] for tensors in zip(*each, strict=True)
        )

    def _sum_positions(self, gradient: Tensor, tensor: Tensor) -> Tensor:
        gradient = F.widen(gradient)
        if self.weighting == "contributions":
            gradient = gradient * tensor
        return gradient.flatten(2).sum(2) if gradient.dim() > 2 else gradient

    def _normalized(self, contributions: Tensor, with_foil: Tensor) -> Tensor:
        """Eq. 12, the importance of each channel, ``(B, N)``, or what stands in its place."""
        if self.normalization != "auto":
            return _NORMALIZATIONS[self.normalization](contributions)
        return torch.where(with_foil.unsqueeze(1), contributions, F.minmax(contributions))

    def _note_support_blindness(self, call: LayerCall, contributions: list[tuple[Tensor, ...]]) -> None:
        """Note once, per object, where most of a map is the plain sum of activations."""
        if self._warned or self.normalization not in ("auto", "minmax"):
            return
        groups = zip(call.activations, contributions, strict=True)
        pairs = [pair for group in groups for pair in zip(*group, strict=True)]
        blind = torch.stack([F.support_blind_share(a, c) > 0.5 for a, c in pairs]).any(0)
        if (blind & ~call.comparison.with_foil if self.normalization == "auto" else blind).any():
            self._warned = True
            call.notes.append(
                "more than half of a map's energy is the plain sum of activations, the same for every support: "
                "Eq. 12 lifts contributions of both signs. Use LayerSimilarityCAM, or a foil with normalization='auto'"
            )


def _weighted(activation: Tensor, weights: Tensor, sum_channels: bool) -> Tensor:
    """Eq. 13, the sum of activation maps weighted by channel, or each of them: ``(B, N, *spatial)``."""
    if sum_channels:
        return F.activation_map(activation, weights)
    return F.widen(activation) * weights.reshape(*weights.shape, *[1] * (activation.dim() - 2))


def _head_weight(matrix: object, cotangent: Tensor) -> Tensor:
    shape = tuple(matrix.shape) if isinstance(matrix, Tensor) else ()
    if not isinstance(matrix, Tensor) or matrix.dim() != 2 or matrix.shape[0] != cotangent.shape[1]:
        raise ValueError(f"transform has a weight of shape {shape}, expected (J, N) with J = {cotangent.shape[1]}")
    return matrix.detach().to(cotangent)


def _check_choice(name: str, value: object, choices: tuple[object, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")
