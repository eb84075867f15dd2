"""Where a query has counterparts in its support: position against position."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from captum._utils.typing import TargetType
from torch import Tensor, nn

from captum_fam import functional as F
from captum_fam._training_mode import warn_of_training_mode
from captum_fam.attr._base import Comparison, Maps, SimilarityLayerAttribution, outside
from captum_fam.attr._layer_run import run_layers
from captum_fam.attr._repeated import logged_attribute
from captum_fam.attr.matching import best_match, descriptors, soft_best_match
from captum_fam.attr.tokens import TokenGridLike
from captum_fam.similarity import SimilarityLike
from captum_fam.support import SimilarityToSupport, SupportSet, as_support_set, plain_arithmetic
from captum_fam.support.memory_bank import MemoryBank

# Descriptors of supports are kept between calls up to this many bytes; more are made anew, batch by batch.
_KEPT = 2**28


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


class CorrespondenceDetails(NamedTuple):
    """What :class:`LayerCorrespondence` computed on its way to the maps.

    Attributes:
        attributions: what ``attribute`` returns.
        comparison: scores and classes of the model's own decision.
    """

    attributions: Maps
    comparison: Comparison


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

    The support must hold images: positions cannot be read from embeddings. Their descriptors are kept as the embeddings
    of a :class:`~captum_fam.SupportSet` are, for as long as the weights of the model stay the same; they go through the
    model in batches of the set's ``batch_size``.

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
        self._embed: _Descriptors | None = None

    @classmethod
    def get_name(cls) -> str:
        return "Layer Correspondence"

    @logged_attribute
    def attribute(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        support: SupportSet | Tensor | None = None,
        target: TargetType = None,
        additional_forward_args: object = None,
        attribute_to_layer_input: bool = False,
        relu_attributions: bool = False,
    ) -> Maps:
        """Compute the map of every query.

        Args:
            inputs: queries, ``(B, C, H, W)``.
            support: images ``(K, C, H, W)`` of one class or a :class:`~captum_fam.SupportSet` of images. Left out
                when ``forward_func`` is a :class:`~captum_fam.SimilarityToSupport`.
            target: the class to explain, in any form that Captum takes; None: the predicted class.
            additional_forward_args: further arguments of ``forward_func``, no tensors among them.
            attribute_to_layer_input: match the input of the layer instead of its output.
            relu_attributions: cut negative values of the map at zero.

        Returns:
            *Tensor* of **attributions**, ``(B, 1, *spatial)`` of the layer: a soft cosine, or with a foil the
            difference of two; detached.

        Raises:
            ValueError: for a support of embeddings or a layer that gives more than one tensor.
            AssertionError: for a target that Captum refuses.
        """
        return self.details(
            inputs, support, target, additional_forward_args, attribute_to_layer_input, relu_attributions
        ).attributions

    def details(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        support: SupportSet | Tensor | None = None,
        target: TargetType = None,
        additional_forward_args: object = None,
        attribute_to_layer_input: bool = False,
        relu_attributions: bool = False,
    ) -> CorrespondenceDetails:
        """As :meth:`attribute`, with scores and classes beside the maps."""
        run, comparison = self._compare(inputs, support, target, additional_forward_args, attribute_to_layer_input)
        if isinstance(support, MemoryBank):
            raise ValueError("support holds embeddings, which have no positions to match; pass its images")
        if isinstance(support, Tensor) and isinstance(inputs, Tensor) and support.dim() > inputs.dim():
            raise ValueError(
                f"support must be images (K, C, H, W) shared by the batch, got one set a query, {tuple(support.shape)}"
            )
        activation = self._single(self._activations(run)[0])
        scores = self.forward_func if isinstance(self.forward_func, SimilarityToSupport) else None
        support_set = scores.support if scores is not None else as_support_set(support)  # type: ignore[arg-type]
        foil = scores.foil if scores is not None else None
        with plain_arithmetic(activation.device):
            query = descriptors(activation, self.window)
            classes = self._class_maps(query, support_set, additional_forward_args, attribute_to_layer_input)
            target_index = comparison.target[:, None, None].expand(-1, classes.shape[1], 1)
            map_ = classes.gather(2, target_index)
            if isinstance(foil, SupportSet):
                foils = self._class_maps(query, foil, additional_forward_args, attribute_to_layer_input)
                map_ = map_ - foils.mean(2, keepdim=True)
            elif foil is not None:
                is_target = torch.arange(classes.shape[2], device=classes.device) == target_index
                if foil == "runner-up":
                    map_ = map_ - classes.masked_fill(is_target, -torch.inf).amax(2, keepdim=True)
                else:
                    map_ = map_ - classes.masked_fill(is_target, 0).sum(2, keepdim=True) / (classes.shape[2] - 1)
            if foil is not None:
                # A foil that equals the class leaves the rounding of two cosines.
                noise = 2 * F.rounding(query.shape[2], map_.dtype)
                map_ = F.zero_within(map_, torch.full_like(map_, float(noise)))
        maps = map_.transpose(1, 2).reshape(len(activation), 1, *activation.shape[2:])
        return CorrespondenceDetails(self._format([(maps,)], relu_attributions), comparison)

    def match(self, inputs: Tensor, support: SupportSet | Tensor, additional_forward_args: object = None) -> Matches:
        """Point to point: the best partner in each support image for every position of the queries.

        Args:
            inputs: queries, ``(B, C, H, W)``.
            support: K images or a :class:`~captum_fam.SupportSet` of them. Exchange both for the other side.
            additional_forward_args: further arguments of ``forward_func``.

        Returns:
            :class:`Matches`; multiply a position by the image's size over the activation's for pixels.
        """
        warn_of_training_mode(self._model, outside() + 1)
        support_set = as_support_set(support)
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

    def _class_maps(
        self, query: Tensor, support: SupportSet, additional_forward_args: object, attribute_to_layer_input: bool
    ) -> Tensor:
        """Mean match with the supports of each class, ``(B, P, C)``; a batch of supports at a time."""
        images = _images(support)
        embed = _Descriptors(self, attribute_to_layer_input, additional_forward_args)
        members = nn.functional.one_hot(support.labels, support.n_classes).to(query)
        members = members / members.sum(0)
        total = query.new_zeros(*query.shape[:2], support.n_classes)
        size = support.batch_size
        is_small = len(images) * query[0].numel() * query.element_size() <= _KEPT
        if is_small and isinstance(self._model, nn.Module):
            parts = support.embed(self._kept_descriptors(embed)).split(size)
        else:
            parts = (embed(chunk) for chunk in images.split(size))
        for part, of_class in zip(parts, members.split(size), strict=True):
            matches = soft_best_match(query, part.unflatten(1, (-1, query.shape[2])).to(query), self.sharpness)
            total += matches @ of_class
        return total

    def _kept_descriptors(self, embed: _Descriptors) -> _Descriptors:
        """The same object from call to call, under which a support set keeps what it has embedded."""
        if self._embed is None or not self._embed.is_like(embed):
            self._embed = embed
        return self._embed

    def _image_activation(self, images: Tensor, additional_forward_args: Any, at_input: bool) -> Tensor:
        args = None if additional_forward_args is None else _as_tuple(additional_forward_args)
        run = run_layers(self._model, (images,), self._layers, args, at_input, self.device_ids)
        activation = self._single(self._activations(run)[0])
        if not F.is_finite(activation):
            raise ValueError("layer: its activation contains NaN or inf")
        return activation

    def _single(self, tensors: tuple[Tensor, ...]) -> Tensor:
        if len(tensors) != 1:
            raise ValueError(f"layer gives {len(tensors)} tensors; LayerCorrespondence matches the positions of one")
        return tensors[0]


class _Descriptors(nn.Module):
    """Images to the descriptors of all their positions, ``(K, P * N)``: what a support set can keep."""

    def __init__(self, method: LayerCorrespondence, at_input: bool, args: Any) -> None:
        super().__init__()
        self.method = method
        self.window = method.window
        self.at_input = at_input
        self.args = args
        self.model = method._model  # whose weights a support set looks at

    def is_like(self, other: _Descriptors) -> bool:
        """Whether the two give the same descriptors under the same weights."""
        return (self.window, self.at_input, self.args) == (other.window, other.at_input, other.args)

    def forward(self, images: Tensor) -> Tensor:
        activation = self.method._image_activation(images, self.args, self.at_input)
        with plain_arithmetic(activation.device):
            return descriptors(activation, self.window).flatten(1)


def _as_tuple(args: Any) -> tuple[Any, ...]:
    return args if isinstance(args, tuple) else (args,)


def _images(support: SupportSet) -> Tensor:
    if support.holds_embeddings:
        raise ValueError("support holds embeddings, which have no positions to match; pass its images")
    return support.inputs
