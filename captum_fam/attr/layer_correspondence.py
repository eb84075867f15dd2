"""Where a query has counterparts in its support: position against position."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from captum_fam import functional as F
from captum_fam._arithmetic import plain_arithmetic
from captum_fam._captum import format_additional_forward_args
from captum_fam._training_mode import training_mode_in_words
from captum_fam._warnings import warn_user
from captum_fam.attr._layer_run import run_layers
from captum_fam.attr.base import SimilarityLayerAttribution
from captum_fam.attr.call import LayerCall, LayerMaps
from captum_fam.attr.matching import best_match, descriptors, soft_best_match
from captum_fam.attr.tokens import TokenGridLike
from captum_fam.similarity import SimilarityLike
from captum_fam.support import SupportSet


@dataclass(frozen=True)
class Matches:
    """For every position of each query its best partner in every support image.

    Attributes:
        cosine: of the two descriptors, ``(B, *spatial, K)``.
        position: row, column, ... of the partner in the support's activation, ``(B, *spatial, K, D)`` for D
            spatial dimensions.
    """

    cosine: Tensor
    position: Tensor


class LayerCorrespondence(SimilarityLayerAttribution):
    r"""How well each position of the query is matched by some position of the support images.

    With descriptors :math:`\hat a_p` of the query and :math:`\hat b_q` of support image k (unit vectors, the
    activation averaged over a window), the map of class c is the mean over its supports of the soft maximum
    :math:`\frac1r \log \frac1Q \sum_q \exp(r \langle \hat a_p, \hat b_q \rangle)`.

    What it is: with a foil, the strongest of the maps here at finding the shared object among others. What it is
    not: an account of the model's score. The model compares pooled embeddings; this compares positions, knows
    nothing of the head, and its sum is no part of the similarity. Use :class:`LayerSimilarityCAM` for that, and
    both to see whether they agree. A window also smooths the map, which by itself raises scores on large objects.

    A :class:`~captum_fam.SimilarityToSupport` brings a foil, applied at each position: ``"others"`` subtracts the
    mean of the other classes' maps, ``"runner-up"`` the best of them (usually the clearest), a support set its
    own. Without one the map shows everything that has a counterpart, background included.

    The support must hold images: positions cannot be read from embeddings. They go through the model in every call, in
    batches of the set's ``batch_size``.

    Args:
        forward_func: an embedding model or a :class:`~captum_fam.SimilarityToSupport`, as for :class:`LayerFAM`.
        layer: one module, or its dotted name.
        device_ids: order of the devices, where ``forward_func`` runs a DataParallel model of its own.
        similarity: only used to predict the class when ``target`` is None.
        window: side of the window of a descriptor, odd.
        sharpness: r of the soft maximum.
        token_grid: rearranges the layer's tensors into ``(B, N, *spatial)``.

    Example:
        >>> scores = SimilarityToSupport(model, SupportSet(images, labels), foil="runner-up")
        >>> attributions = LayerCorrespondence(scores, model.layer4).attribute(queries, target=3)  # (B, 1, 7, 7)
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        layer: nn.Module | str,
        device_ids: list[int] | None = None,
        *,
        similarity: SimilarityLike = "cosine",
        window: int = 3,
        sharpness: float = 20.0,
        token_grid: TokenGridLike | None = None,
    ) -> None:
        super().__init__(forward_func, layer, device_ids, similarity=similarity, token_grid=token_grid)
        if not isinstance(self.layer, nn.Module):
            raise TypeError("layer must be one module: positions of several layers are not comparable")
        if window < 1 or window % 2 == 0:
            raise ValueError(f"window must be odd and positive, got {window}")
        if not sharpness > 0:
            raise ValueError(f"sharpness must be positive, got {sharpness}")
        self.window = window
        self.sharpness = sharpness

    @classmethod
    def get_name(cls) -> str:
        return "Layer Correspondence"

    def map_layers(self, call: LayerCall) -> LayerMaps:
        """The match of every position with the supports of the target class, minus that with the foil."""
        if not call.sum_channels:
            raise ValueError("attr_dim_summation: cosines of positions have no shares of channels")
        support, foil = self._images_of(call), None if self.scores is None else self.scores.foil
        activation = self._single(call.activations[0])
        with plain_arithmetic(activation.device):
            query = descriptors(activation, self.window)
            classes = self._class_maps(query, support, call)
            target = call.comparison.target[:, None, None].expand(-1, classes.shape[1], 1)
            map_ = classes.gather(2, target)
            if isinstance(foil, SupportSet):
                map_ = map_ - self._class_maps(query, foil, call).mean(2, keepdim=True)
            elif foil is not None:
                is_target = torch.arange(classes.shape[2], device=classes.device) == target
                if foil == "runner-up":
                    map_ = map_ - classes.masked_fill(is_target, -torch.inf).amax(2, keepdim=True)
                else:
                    map_ = map_ - classes.masked_fill(is_target, 0).sum(2, keepdim=True) / (classes.shape[2] - 1)
            if foil is not None:
                # A foil that equals the class leaves the rounding of two cosines.
                noise = 2 * F.rounding(query.shape[2], map_.dtype)
                map_ = F.zero_within(map_, torch.full_like(map_, float(noise)))
        return LayerMaps([(map_.transpose(1, 2).reshape(len(activation), 1, *activation.shape[2:]),)])

    def match(self, inputs: Tensor, support: SupportSet | Tensor, additional_forward_args: object = None) -> Matches:
        """Point to point: the best partner in each support image for every position of the queries.

        Args:
            inputs: queries, ``(B, C, H, W)``.
            support: K images or a :class:`~captum_fam.SupportSet` of them. Exchange both for the other side.
            additional_forward_args: further arguments of ``forward_func``.

        Returns:
            :class:`Matches`; multiply a position by the image's size over the activation's for pixels.
        """
        in_training = training_mode_in_words(self.model)
        if in_training is not None:
            warn_user(in_training, 2)
        support_set = support if isinstance(support, SupportSet) else SupportSet(support)
        activation = self._image_activation(inputs, additional_forward_args, False)
        size = support_set.batch_size
        with plain_arithmetic(activation.device):
            query = descriptors(activation, self.window)
            found, grids = [], set()
            for images in _images(support_set).split(size):
                partners = self._image_activation(images, additional_forward_args, False)
                grids.add(tuple(partners.shape[2:]))
                found.append(best_match(query, descriptors(partners, self.window)))
            cosine, index = (torch.cat(parts, -1) for parts in zip(*found, strict=True))
            (partner_grid,) = grids
        grid = activation.shape[2:]
        position = torch.stack(torch.unravel_index(index, partner_grid), -1)
        return Matches(cosine.unflatten(1, grid), position.unflatten(1, grid))

    def _images_of(self, call: LayerCall) -> SupportSet:
        """The support with its images, of which the call holds the embeddings."""
        support = call.support
        if not isinstance(support, SupportSet):
            raise ValueError(
                f"support must be images (K, C, H, W) shared by the batch or a SupportSet of them, got a "
                f"{type(support).__name__}, which has no images whose positions are shared by all queries"
            )
        return support

    def _class_maps(self, query: Tensor, support: SupportSet, call: LayerCall) -> Tensor:
        """Mean match with the supports of each class, ``(B, P, C)``; a batch of supports at a time."""
        images = _images(support)
        members = support.class_weights(query.dtype).T.to(query.device)
        total = query.new_zeros(*query.shape[:2], support.n_classes)
        size = support.batch_size
        for some, of_class in zip(images.split(size), members.split(size), strict=True):
            partners = descriptors(self._image_activation(some, call.args, call.at_input), self.window)
            total += soft_best_match(query, partners.to(query), self.sharpness) @ of_class
        return total

    def _image_activation(self, images: Tensor, additional_forward_args: Any, at_input: bool) -> Tensor:
        args = format_additional_forward_args(additional_forward_args)
        run = run_layers(self.model, (images,), self.layers, args, at_input, self.device_ids)
        activation = self._single(self.activations_of(run)[0])
        if not F.is_finite(activation):
            raise ValueError("layer: its activation contains NaN or inf")
        return activation

    def _single(self, tensors: tuple[Tensor, ...]) -> Tensor:
        if len(tensors) != 1:
            raise ValueError(f"layer gives {len(tensors)} tensors; LayerCorrespondence matches the positions of one")
        return tensors[0]


def _images(support: SupportSet) -> Tensor:
    if support.holds_embeddings:
        raise ValueError("support holds embeddings, which have no positions to match; pass its images")
    return support.inputs
