"""Matching positions of a query with positions of the support images, as a Captum layer attribution."""

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
from captum_fam.support import Gallery, SupportSet


@dataclass(frozen=True)
class Matches:
    """The best partner in every support image, for every position of each query.

    Attributes:
        cosine: cosine of the descriptors of the position and its partner, ``(B, *spatial, K)``.
        position: row, column, ... of the partner in the activation of the support image, ``(B, *spatial, K, D)`` for D
            spatial dimensions, int64.
    """

    cosine: Tensor
    position: Tensor


class LayerCorrespondence(SimilarityLayerAttribution):
    r"""How well each position of the query matches the best position of the support images.

    A descriptor is the activation at a position, averaged over a window and scaled to length one. With descriptors
    :math:`\hat a_p` of the query and :math:`\hat b_q` of a support image with Q positions, the map of a class is the
    mean over the support images of the class of the soft maximum
    :math:`\frac1r \log \frac1Q \sum_q \exp(r \langle \hat a_p, \hat b_q \rangle)`.

    With a foil, this map is the strongest of the maps of this package at finding the shared object among others. The
    map does not explain the score of the model: the model compares pooled embeddings, while this method compares
    positions and does not use the head, and the sum of the map is no part of the similarity. Use
    :class:`LayerSimilarityCAM` to explain the score, and both methods to see whether they agree. The window also
    smooths the map, which alone raises scores on large objects.

    The foil of a :class:`~captum_fam.SimilarityToSupport` applies at each position: ``"others"`` subtracts the mean of
    the maps of the other classes, ``"runner-up"`` subtracts the largest of these maps (usually the clearest choice),
    a support set subtracts its own map, and ``"gallery"`` the mean map of all images of a gallery. Maps against a
    threshold are refused: a number has no positions. Without a foil the map shows everything that has a counterpart,
    background included.

    The support must hold images, because embeddings have no positions. The support images go through the model in every
    call, in batches of the ``batch_size`` of the support set.

    Args:
        forward_func: an embedding model, ``forward_func(x) -> (B, J)``, or a
            :class:`~captum_fam.SimilarityToSupport`, which has a support, a similarity and a foil already.
        layer: one module, or its dotted name.
        device_ids: order of the devices of a ``DataParallel`` model that ``forward_func`` runs. Default: None, the
            ``device_ids`` of ``forward_func``.
        similarity: predicts the class where ``target`` is None, and has no other effect. Default: "cosine".
        window: side of the window of a descriptor, in positions of the layer, odd. Default: 3.
        sharpness: r of the soft maximum, positive. Default: 20.
        token_grid: rearranges the tensor of the layer into ``(B, N, *spatial)``, such as a
            :class:`~captum_fam.TokenGrid`. Default: None, the tensor has that form.

    Raises:
        TypeError: for a list of layers; as :class:`SimilarityLayerAttribution`.
        ValueError: for a window or sharpness out of range; as :class:`SimilarityLayerAttribution`.

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
        """Compute the match of every position with the target class, minus the match with the foil."""
        if not call.sum_channels:
            raise ValueError("attr_dim_summation=False: cosines of positions have no shares of channels")
        if self.scores is not None and self.scores.against is not None:
            raise ValueError(
                f"against={self.scores.against!r}: LayerCorrespondence compares positions, among which a number has no "
                "place; use LayerSimilarityCAM"
            )
        support, foil = self._images_of(call), None if self.scores is None else self.scores.foil
        activation = self._single(call.activations[0])
        with plain_arithmetic(activation.device):
            query = descriptors(activation, self.window)
            classes = self._class_maps(query, support, call)
            # The map of the target class; then the foil is subtracted at each position.
            target = call.comparison.target[:, None, None].expand(-1, classes.shape[1], 1)
            map_ = classes.gather(2, target)
            if isinstance(foil, SupportSet):
                map_ = map_ - self._class_maps(query, foil, call).mean(2, keepdim=True)
            elif isinstance(foil, Gallery):
                images = _gallery_images(foil)
                map_ = map_ - self._mean_map(self._class_maps(query, images, call), images)
            elif foil == "gallery":
                map_ = map_ - self._mean_map(classes, support)
            elif foil is not None:
                is_target = torch.arange(classes.shape[2], device=classes.device) == target
                if foil == "runner-up":
                    map_ = map_ - classes.masked_fill(is_target, -torch.inf).amax(2, keepdim=True)
                else:
                    map_ = map_ - classes.masked_fill(is_target, 0).sum(2, keepdim=True) / (classes.shape[2] - 1)
            if foil is not None:
                # Where the foil equals the class, the difference is only the rounding noise of two cosines.
                noise = 2 * F.rounding(query.shape[2], map_.dtype)
                map_ = F.zero_within(map_, torch.full_like(map_, float(noise)))
        return LayerMaps([(map_.transpose(1, 2).reshape(len(activation), 1, *activation.shape[2:]),)])

    def match(self, inputs: Tensor, support: SupportSet | Tensor, additional_forward_args: object = None) -> Matches:
        """Find the best partner in each support image for every position of the queries.

        Exchange queries and support for the best partner of every position of the support.

        Args:
            inputs: queries, ``(B, C, H, W)``.
            support: images ``(K, C, H, W)`` or a :class:`~captum_fam.SupportSet` of images.
            additional_forward_args: further arguments of ``forward_func``. Default: None.

        Returns:
            :class:`Matches`. Positions are cells of the layer's grid: multiply them by the size of the image divided by
            the size of the grid to get pixels.

        Raises:
            ValueError: for a support of embeddings, a layer that gives several tensors or no grid of positions, or an
                activation with NaN or inf.

        Example:
            >>> matches = LayerCorrespondence(model, model.layer4).match(queries, images)
            >>> matches.cosine.shape, matches.position.shape
            (torch.Size([8, 7, 7, 8]), torch.Size([8, 7, 7, 8, 2]))
        """
        in_training = training_mode_in_words(self.model)
        if in_training is not None:
            warn_user(in_training, 2)
        support_set = support if isinstance(support, SupportSet) else SupportSet(support)
        activation = self._image_activation(inputs, additional_forward_args, False)
        size = support_set.batch_size
        with plain_arithmetic(activation.device):
            query = descriptors(activation, self.window)
            best, grids = [], set()
            for images in _images(support_set).split(size):
                partners = self._image_activation(images, additional_forward_args, False)
                grids.add(tuple(partners.shape[2:]))
                best.append(best_match(query, descriptors(partners, self.window)))
            cosine, index = (torch.cat(parts, -1) for parts in zip(*best, strict=True))
            (partner_grid,) = grids  # the images of a support set have one size
        grid = activation.shape[2:]
        position = torch.stack(torch.unravel_index(index, partner_grid), -1)
        return Matches(cosine.unflatten(1, grid), position.unflatten(1, grid))

    def _images_of(self, call: LayerCall) -> SupportSet:
        """The support as images; ``call.embedded`` holds embeddings only."""
        support = call.support
        if not isinstance(support, SupportSet):
            raise ValueError(
                f"support must be images (K, C, H, W) shared by the batch or a SupportSet of them, got a "
                f"{type(support).__name__}, which has no images whose positions are shared by all queries"
            )
        return support

    def _class_maps(self, query: Tensor, support: SupportSet, call: LayerCall) -> Tensor:
        """Mean match with the support images of each class, ``(B, P, classes)``, batch by batch of the support."""
        images = _images(support)
        members = support.class_weights(query.dtype).T.to(query.device)
        total = query.new_zeros(*query.shape[:2], support.n_classes)
        size = support.batch_size
        for batch, class_weights in zip(images.split(size), members.split(size), strict=True):
            partners = descriptors(self._image_activation(batch, call.args, call.at_input), self.window)
            total += soft_best_match(query, partners.to(query), self.sharpness) @ class_weights
        return total

    @staticmethod
    def _mean_map(classes: Tensor, images: SupportSet) -> Tensor:
        """The mean match with all images, ``(B, P, 1)``, from the matches with each class, ``(B, P, classes)``."""
        counts = classes.new_tensor(images.class_counts)
        return (classes * counts).sum(2, keepdim=True) / counts.sum()

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


def _gallery_images(gallery: Gallery) -> SupportSet:
    if not isinstance(gallery.source, SupportSet) or gallery.left_out is not None:
        raise ValueError(
            "gallery must be images (M, C, H, W), or a SupportSet of them, the same for all queries: "
            "LayerCorrespondence compares positions"
        )
    _images(gallery.source, "gallery")
    return gallery.source


def _images(support: SupportSet, name: str = "support") -> Tensor:
    if support.holds_embeddings:
        raise ValueError(f"{name} holds embeddings, which have no positions to match; pass its images")
    return support.inputs
