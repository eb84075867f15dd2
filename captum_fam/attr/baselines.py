"""Trivial maps as Captum layer attributions: the floor that every table of a map needs.

They are called like :class:`~captum_fam.LayerFAM`, so that a table of methods holds them too, and all of them are
blind to the support: whatever it is, the map is the same.
"""

from __future__ import annotations

import zlib
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from captum_fam import functional as F
from captum_fam._arithmetic import plain_arithmetic
from captum_fam.attr.base import SimilarityLayerAttribution
from captum_fam.attr.call import LayerCall, LayerMaps
from captum_fam.attr.tokens import TokenGridLike


class SupportBlindAttribution(SimilarityLayerAttribution):
    """Base of the baselines: one pass, and a map of the layer's activation (or of its size) alone.

    Args:
        forward_func: an embedding model, ``forward_func(x) -> (B, J)``, or a
            :class:`~captum_fam.SimilarityToSupport`.
        layer: a module, its dotted name in ``forward_func``, or a list of these.
        device_ids: order of the devices, where ``forward_func`` runs a DataParallel model of its own.
        token_grid: rearranges the layer's tensors into ``(B, N, *spatial)``: :class:`~captum_fam.TokenGrid`.
    """

    needs_support = False

    def __init__(
        self,
        forward_func: Callable[..., Any],
        layer: nn.Module | str | Sequence[nn.Module | str],
        device_ids: list[int] | None = None,
        *,
        token_grid: TokenGridLike | None = None,
    ) -> None:
        super().__init__(forward_func, layer, device_ids, token_grid=token_grid)

    def map_layers(self, call: LayerCall) -> LayerMaps:
        """A map of each tensor."""
        queries = call.inputs[0]
        with plain_arithmetic(call.run.embedding.device):
            return LayerMaps(
                [
                    tuple(self._map(F.widen(tensor), queries, call.sum_channels) for tensor in tensors)
                    for tensors in call.activations
                ]
            )

    @abstractmethod
    def _map(self, activation: Tensor, inputs: Tensor, attr_dim_summation: bool) -> Tensor:
        """The map ``(B, 1, *spatial)``, or what each channel adds to it, ``(B, N, *spatial)``."""


class LayerUniform(SupportBlindAttribution):
    """One everywhere: the map that says nothing. Support-blind.

    Min-max leaves nothing of a flat map, so that :func:`~captum_fam.metrics.energy_proportion` is NaN for it; what it
    would have is :func:`~captum_fam.metrics.area_share`. Measures of the positive part take it as it is.

    Args:
        forward_func: an embedding model, ``forward_func(x) -> (B, J)``, or a
            :class:`~captum_fam.SimilarityToSupport`.
        layer: a module, its dotted name in ``forward_func``, or a list of these.
        device_ids: order of the devices, where ``forward_func`` runs a DataParallel model of its own.
        token_grid: rearranges the layer's tensors into ``(B, N, *spatial)``: :class:`~captum_fam.TokenGrid`.

    Example:
        >>> LayerUniform(model, model.layer4).attribute(torch.rand(2, 3, 224, 224)).unique()
        tensor([1.])
    """

    @classmethod
    def get_name(cls) -> str:
        return "Layer Uniform"

    def _map(self, activation: Tensor, inputs: Tensor, attr_dim_summation: bool) -> Tensor:
        return _over_channels(torch.ones_like(activation[:, :1]), activation, attr_dim_summation)


class LayerCenterPrior(SupportBlindAttribution):
    r"""A Gaussian around the middle of the image, or a box there, where photographers put objects. Support-blind.

    :math:`L_p = \exp(-\|u_p - 1/2\|^2 / 2 \sigma^2)`, with u_p the center of the position in units of the sides.

    Args:
        forward_func: an embedding model, ``forward_func(x) -> (B, J)``, or a
            :class:`~captum_fam.SimilarityToSupport`.
        layer: a module, its dotted name in ``forward_func``, or a list of these.
        device_ids: order of the devices, where ``forward_func`` runs a DataParallel model of its own.
        sigma: standard deviation, as a share of each side.
        box: None; or the share of each side that a centered box of ones takes instead of the Gaussian. It has edges
            that the layer's grid cannot hold, so that its map is as large as the input. 0.6 has an IoU of 0.52 on
            the birds of CUB.
        token_grid: rearranges the layer's tensors into ``(B, N, *spatial)``: :class:`~captum_fam.TokenGrid`.

    Raises:
        ValueError: for a sigma that is not positive or a box that is not in (0, 1].

    Example:
        >>> LayerCenterPrior(model, model.layer4, box=0.6).attribute(torch.rand(2, 3, 224, 224)).shape
        torch.Size([2, 1, 224, 224])
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        layer: nn.Module | str | Sequence[nn.Module | str],
        device_ids: list[int] | None = None,
        *,
        sigma: float = 0.25,
        box: float | None = None,
        token_grid: TokenGridLike | None = None,
    ) -> None:
        super().__init__(forward_func, layer, device_ids, token_grid=token_grid)
        if not sigma > 0:
            raise ValueError(f"sigma must be positive, a share of the side, got {sigma}")
        if box is not None and not 0 < box <= 1:
            raise ValueError(f"box must be in (0, 1], a share of the side, got {box}")
        self.sigma = sigma
        self.box = box

    @classmethod
    def get_name(cls) -> str:
        return "Layer Center Prior"

    def _map(self, activation: Tensor, inputs: Tensor, attr_dim_summation: bool) -> Tensor:
        prior = activation.new_ones(1, 1, *(activation if self.box is None else inputs).shape[2:])
        for axis in range(2, prior.dim()):
            length = prior.shape[axis]
            away = (torch.arange(length, dtype=prior.dtype, device=prior.device) + 0.5) / length - 0.5
            factor = (-0.5 * (away / self.sigma) ** 2).exp() if self.box is None else away.abs() < self.box / 2
            prior = prior * factor.view(-1, *[1] * (prior.dim() - 1 - axis))
        return _over_channels(prior.repeat(len(activation), *[1] * (prior.dim() - 1)), activation, attr_dim_summation)


class LayerRandom(SupportBlindAttribution):
    """Noise, uniform in [0, 1) at the layer's positions. Support-blind.

    A query's map is drawn from the seed and the query itself: it is the same in every batch and process, and the
    global random state is left as it was.

    Args:
        forward_func: an embedding model, ``forward_func(x) -> (B, J)``, or a
            :class:`~captum_fam.SimilarityToSupport`.
        layer: a module, its dotted name in ``forward_func``, or a list of these.
        device_ids: order of the devices, where ``forward_func`` runs a DataParallel model of its own.
        seed: of the noise.
        token_grid: rearranges the layer's tensors into ``(B, N, *spatial)``: :class:`~captum_fam.TokenGrid`.

    Example:
        >>> first, second = (LayerRandom(model, model.layer4, seed=3).attribute(queries) for _ in range(2))
        >>> first.equal(second)
        True
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        layer: nn.Module | str | Sequence[nn.Module | str],
        device_ids: list[int] | None = None,
        *,
        seed: int = 0,
        token_grid: TokenGridLike | None = None,
    ) -> None:
        super().__init__(forward_func, layer, device_ids, token_grid=token_grid)
        self.seed = seed

    @classmethod
    def get_name(cls) -> str:
        return "Layer Random"

    def _map(self, activation: Tensor, inputs: Tensor, attr_dim_summation: bool) -> Tensor:
        shape = activation.shape[2:]
        maps = [torch.rand(1, *shape, generator=_generator(self.seed, query)) for query in inputs.detach().cpu()]
        return _over_channels(torch.stack(maps).to(activation), activation, attr_dim_summation)


class LayerMeanActivation(SupportBlindAttribution):
    r"""The mean of the layer's activation maps, :math:`L = \frac1N \sum_n A^n`. Support-blind.

    LaFAM without its min-max (Karjauv and Albayrak, arXiv 2407.06059). FAM as published comes close to it wherever
    contributions have both signs.

    Args:
        forward_func: an embedding model, ``forward_func(x) -> (B, J)``, or a
            :class:`~captum_fam.SimilarityToSupport`.
        layer: a module, its dotted name in ``forward_func``, or a list of these.
        device_ids: order of the devices, where ``forward_func`` runs a DataParallel model of its own.
        token_grid: rearranges the layer's tensors into ``(B, N, *spatial)``: :class:`~captum_fam.TokenGrid`.

    Example:
        >>> LayerMeanActivation(model, model.layer4).attribute(torch.rand(2, 3, 224, 224)).shape
        torch.Size([2, 1, 7, 7])
    """

    @classmethod
    def get_name(cls) -> str:
        return "Layer Mean Activation"

    def _map(self, activation: Tensor, inputs: Tensor, attr_dim_summation: bool) -> Tensor:
        count = activation.shape[1]
        return _weighted(activation, activation.new_full((len(activation), count), 1 / count), attr_dim_summation)


class LayerEigenCAM(SupportBlindAttribution):
    r"""The layer's activation along its first principal direction, :math:`L = \sum_n v_n A^n`. Support-blind.

    v is the first right singular vector of the activation as a (positions x channels) matrix that is not centered
    (Muhammad and Yeasin, "Eigen-CAM", IJCNN 2020), with the sign that makes the map's mean positive. Where the mean is
    zero, or two singular values are equal, the map is not determined.

    Args:
        forward_func: an embedding model, ``forward_func(x) -> (B, J)``, or a
            :class:`~captum_fam.SimilarityToSupport`.
        layer: a module, its dotted name in ``forward_func``, or a list of these.
        device_ids: order of the devices, where ``forward_func`` runs a DataParallel model of its own.
        token_grid: rearranges the layer's tensors into ``(B, N, *spatial)``: :class:`~captum_fam.TokenGrid`.

    Example:
        >>> LayerEigenCAM(model, model.layer4).attribute(torch.rand(2, 3, 224, 224)).shape
        torch.Size([2, 1, 7, 7])
    """

    @classmethod
    def get_name(cls) -> str:
        return "Layer Eigen-CAM"

    def _map(self, activation: Tensor, inputs: Tensor, attr_dim_summation: bool) -> Tensor:
        return _weighted(activation, _first_direction(activation.flatten(2)), attr_dim_summation)


def _over_channels(prior: Tensor, activation: Tensor, attr_dim_summation: bool) -> Tensor:
    """A map in which no channel is more than another."""
    if attr_dim_summation:
        return prior
    count = activation.shape[1]
    return (prior / count).expand(-1, count, *prior.shape[2:]).clone()


def _weighted(activation: Tensor, weights: Tensor, attr_dim_summation: bool) -> Tensor:
    if attr_dim_summation:
        return F.activation_map(activation, weights)
    return activation * weights.reshape(*weights.shape, *[1] * (activation.dim() - 2))


def _first_direction(channels: Tensor) -> Tensor:
    """First singular vector over the channels of ``(B, N, P)``, ``(B, N)``."""
    # Unit scale, so that the squares below neither overflow nor underflow.
    largest = channels.abs().amax((1, 2), keepdim=True)
    channels = channels / torch.where(largest > 0, largest, 1)
    # The smaller of the two Gram matrices has the same leading singular value.
    if channels.shape[1] <= channels.shape[2]:
        direction = torch.linalg.eigh(channels @ channels.mT).eigenvectors[..., -1]
    else:
        position = torch.linalg.eigh(channels.mT @ channels).eigenvectors[..., -1:]
        direction = F.unit((channels @ position).squeeze(-1))
    mean = torch.einsum("bn,bnp->b", direction, channels)
    return direction * torch.where(mean < 0, -1, 1)[:, None]


def _generator(seed: int, query: Tensor) -> torch.Generator:
    content = query.contiguous().view(torch.uint8).numpy().data
    # A generator takes 32 bits of its seed, so that the two must be mixed and not put side by side.
    return torch.Generator().manual_seed(zlib.crc32(content, seed & 0xFFFFFFFF))
