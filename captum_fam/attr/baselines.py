"""Trivial maps as Captum layer attributions: baselines for every table of map methods.

The baselines take the arguments of :class:`~captum_fam.LayerFAM`, so that a table can hold both. All baselines are
support-blind: the map does not depend on the support.
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
    """Base class of the baselines, whose maps depend only on the activation of the layer and on the inputs.

    A subclass defines ``_map``, or ``map_layers`` for maps of something else than the activation.

    Args:
        forward_func: an embedding model, ``forward_func(x) -> (B, J)``, or a
            :class:`~captum_fam.SimilarityToSupport`.
        layer: a module, its dotted name in ``forward_func``, or a list of modules and names.
        device_ids: order of the devices of a ``DataParallel`` model that ``forward_func`` runs. Default: None, the
            ``device_ids`` of ``forward_func``.
        token_grid: rearranges the tensors of the layer into ``(B, N, *spatial)``, such as a
            :class:`~captum_fam.TokenGrid`. Default: None, the tensors have that form.
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
        """Make a map from each tensor."""
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
        """Make the map of one tensor.

        Args:
            activation: ``(B, N, *spatial)``, float32 or float64.
            inputs: the queries, ``(B, C, H, W)``.
            attr_dim_summation: sum over the channels.

        Returns:
            ``(B, 1, *spatial)``, or without summation the share of each channel, ``(B, N, *spatial)``.
        """


class LayerUniform(SupportBlindAttribution):
    """A map with the value one everywhere. Support-blind.

    Min-max makes a constant map zero, so that :func:`~captum_fam.metrics.energy_proportion` of this map is NaN. Use
    :func:`~captum_fam.metrics.area_share` for the energy proportion of a constant map. Measures of the positive part of
    a map apply to this map as usual.

    Args:
        forward_func: an embedding model, ``forward_func(x) -> (B, J)``, or a
            :class:`~captum_fam.SimilarityToSupport`.
        layer: a module, its dotted name in ``forward_func``, or a list of modules and names.
        device_ids: order of the devices of a ``DataParallel`` model that ``forward_func`` runs. Default: None, the
            ``device_ids`` of ``forward_func``.
        token_grid: rearranges the tensors of the layer into ``(B, N, *spatial)``, such as a
            :class:`~captum_fam.TokenGrid`. Default: None, the tensors have that form.

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
    r"""A Gaussian or a box in the middle of the image, where most photographs show their object. Support-blind.

    The Gaussian is :math:`L_p = \exp(-\|u_p - 1/2\|^2 / 2 \sigma^2)`. The center u_p of the position is measured in
    shares of the sides of the image.

    Args:
        forward_func: an embedding model, ``forward_func(x) -> (B, J)``, or a
            :class:`~captum_fam.SimilarityToSupport`.
        layer: a module, its dotted name in ``forward_func``, or a list of modules and names.
        device_ids: order of the devices of a ``DataParallel`` model that ``forward_func`` runs. Default: None, the
            ``device_ids`` of ``forward_func``.
        sigma: standard deviation of the Gaussian, as a share of each side. Default: 0.25.
        box: side of a centered box of ones, as a share of each side, in (0, 1]; the box takes the place of the
            Gaussian. The edges of the box lie between positions of the layer, so that this map has the size of the
            input. A box of 0.6 has a mean IoU of 0.52 with the bounding boxes of the birds in CUB. Default: None, the
            Gaussian.
        token_grid: rearranges the tensors of the layer into ``(B, N, *spatial)``, such as a
            :class:`~captum_fam.TokenGrid`. Default: None, the tensors have that form.

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
            offset = (torch.arange(length, dtype=prior.dtype, device=prior.device) + 0.5) / length - 0.5
            factor = (-0.5 * (offset / self.sigma) ** 2).exp() if self.box is None else offset.abs() < self.box / 2
            prior = prior * factor.view(-1, *[1] * (prior.dim() - 1 - axis))
        return _over_channels(prior.repeat(len(activation), *[1] * (prior.dim() - 1)), activation, attr_dim_summation)


class LayerRandom(SupportBlindAttribution):
    """Uniform noise in [0, 1) at the positions of the layer. Support-blind.

    The noise depends on the seed and on the values of the query, so that the map of a query is the same in every batch
    and every process. The global generator of torch is not used.

    Args:
        forward_func: an embedding model, ``forward_func(x) -> (B, J)``, or a
            :class:`~captum_fam.SimilarityToSupport`.
        layer: a module, its dotted name in ``forward_func``, or a list of modules and names.
        device_ids: order of the devices of a ``DataParallel`` model that ``forward_func`` runs. Default: None, the
            ``device_ids`` of ``forward_func``.
        seed: seed of the noise. Default: 0.
        token_grid: rearranges the tensors of the layer into ``(B, N, *spatial)``, such as a
            :class:`~captum_fam.TokenGrid`. Default: None, the tensors have that form.

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
    r"""The mean of the activation maps of the layer, :math:`L = \frac1N \sum_n A^n`. Support-blind.

    This is LaFAM without the min-max normalization (Karjauv and Albayrak, arXiv 2407.06059). The published FAM is close
    to this map where contributions have both signs.

    Args:
        forward_func: an embedding model, ``forward_func(x) -> (B, J)``, or a
            :class:`~captum_fam.SimilarityToSupport`.
        layer: a module, its dotted name in ``forward_func``, or a list of modules and names.
        device_ids: order of the devices of a ``DataParallel`` model that ``forward_func`` runs. Default: None, the
            ``device_ids`` of ``forward_func``.
        token_grid: rearranges the tensors of the layer into ``(B, N, *spatial)``, such as a
            :class:`~captum_fam.TokenGrid`. Default: None, the tensors have that form.

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
    r"""The activation of the layer along its first principal direction, :math:`L = \sum_n v_n A^n`. Support-blind.

    v is the first right singular vector of the activation as a matrix (positions x channels), without centering
    (Muhammad and Yeasin, "Eigen-CAM", IJCNN 2020). The sign of v makes the mean of the map positive. The map is not
    unique where the mean is zero or the two largest singular values are equal.

    Args:
        forward_func: an embedding model, ``forward_func(x) -> (B, J)``, or a
            :class:`~captum_fam.SimilarityToSupport`.
        layer: a module, its dotted name in ``forward_func``, or a list of modules and names.
        device_ids: order of the devices of a ``DataParallel`` model that ``forward_func`` runs. Default: None, the
            ``device_ids`` of ``forward_func``.
        token_grid: rearranges the tensors of the layer into ``(B, N, *spatial)``, such as a
            :class:`~captum_fam.TokenGrid`. Default: None, the tensors have that form.

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
    """A map that does not depend on the channels; without summation every channel has an equal share."""
    if attr_dim_summation:
        return prior
    count = activation.shape[1]
    return (prior / count).expand(-1, count, *prior.shape[2:]).clone()


def _weighted(activation: Tensor, weights: Tensor, attr_dim_summation: bool) -> Tensor:
    """The activation maps ``(B, N, *spatial)`` times weights ``(B, N)``, or their sum over the channels."""
    if attr_dim_summation:
        return F.activation_map(activation, weights)
    return activation * weights.reshape(*weights.shape, *[1] * (activation.dim() - 2))


def _first_direction(channels: Tensor) -> Tensor:
    """The first singular vector over the channels, ``(B, N)``, of activations ``(B, N, P)``."""
    # At unit scale the squares below neither overflow nor underflow.
    largest = channels.abs().amax((1, 2), keepdim=True)
    channels = channels / torch.where(largest > 0, largest, 1)
    # Both Gram matrices, (N, N) and (P, P), have the same largest eigenvalue. The smaller matrix is faster.
    if channels.shape[1] <= channels.shape[2]:
        direction = torch.linalg.eigh(channels @ channels.mT).eigenvectors[..., -1]
    else:
        position = torch.linalg.eigh(channels.mT @ channels).eigenvectors[..., -1:]
        direction = F.unit((channels @ position).squeeze(-1))
    mean = torch.einsum("bn,bnp->b", direction, channels)
    return direction * torch.where(mean < 0, -1, 1)[:, None]


def _generator(seed: int, query: Tensor) -> torch.Generator:
    """A generator whose state depends on the seed and on the bytes of the query."""
    content = query.contiguous().view(torch.uint8).numpy().data
    # The generator uses only 32 bits of its seed: a checksum mixes the seed and the query into 32 bits.
    return torch.Generator().manual_seed(zlib.crc32(content, seed & 0xFFFFFFFF))
