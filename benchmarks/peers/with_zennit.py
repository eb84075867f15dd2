"""PAIR-X's recipe with the rules of zennit: relevance of the cosine on both sides, and cells that match.

PAIR-X itself (https://github.com/WildMeOrg/pairx) is not on PyPI and needs numpy below 2. Here its recipe is done anew
from its description: layer-wise relevance propagation from the cosine back to a layer, for both images of a pair; cells
that are each other's nearest neighbors by the distance of their activations; the relevance of such a match, the product
of both relevances. The map of the image has the relevances of its matches.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from benchmarks.peers.question import Explain, Question, Row, Subject

PACKAGE = "zennit"


def composite(model: nn.Module) -> Any:
    """The rules: zplus in convolutions, epsilon in linear layers, shares of the sum in poolings and shortcuts.

    Args:
        model: the model, whose batch norms are merged into the convolutions before them.
    """
    from zennit.canonizers import NamedMergeBatchNorm
    from zennit.composites import EpsilonPlus
    from zennit.rules import Norm

    from captum_fam.pooling import GAP

    merged, before = [], ("", None)
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d) and isinstance(before[1], nn.Conv2d):
            merged.append(([before[0]], name))
        before = (name, module)
    return EpsilonPlus(canonizers=[NamedMergeBatchNorm(merged), *_shortcuts()], layer_map=[(GAP, Norm())])


def _shortcuts() -> list[Any]:
    """The sum of a block of timm's EfficientNet as a module, so that it gets a rule; none without timm."""
    from zennit.canonizers import AttributeCanonizer
    from zennit.layer import Sum

    try:
        from timm.models._efficientnet_blocks import InvertedResidual
    except ImportError:
        return []

    def forward(block: Any, x: Tensor) -> Tensor:
        inside = x
        for part in ("conv_pw", "bn1", "conv_dw", "bn2", "aa", "se", "conv_pwl", "bn3"):
            inside = getattr(block, part)(inside)
        return block.shortcut_sum(torch.stack([inside, x], -1))

    def attributes(_: str, module: nn.Module) -> dict[str, Any] | None:
        if not (isinstance(module, InvertedResidual) and module.has_skip):
            return None
        return {"forward": forward.__get__(module), "shortcut_sum": Sum()}

    return [AttributeCanonizer(attributes)]


def relevance(model: nn.Module, layer: nn.Module, images: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """The relevance of each cell of a layer for the cosine, and the activation of the layer.

    Args:
        model: from images to embeddings.
        layer: the layer.
        images: ``(B, 3, H, W)``.
        others: what each image is compared with, embeddings ``(B, J)``.

    Returns:
        Relevances ``(B, h, w)``, whose sum is about the cosine, and activations ``(B, N, h, w)``.
    """
    kept: list[Tensor] = []
    with composite(model).context(model) as ready:
        handle = layer.register_forward_hook(lambda module, args, output: kept.append(output))
        try:
            embedding = ready(images.clone().requires_grad_())
        finally:
            handle.remove()
        # What each feature gives to the cosine is what goes back through the network.
        shares = (normalize(embedding, dim=1) * normalize(others, dim=1)).detach()
        (back,) = torch.autograd.grad(embedding, kept[0], shares)
    return back.sum(1).detach(), kept[0].detach()


def matches(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """The cells that are each other's nearest neighbors by Euclidean distance.

    Args:
        left: activation ``(N, h, w)`` of one image.
        right: activation ``(N, h', w')`` of the other.

    Returns:
        Flat indices of the cells on both sides, each ``(m,)``.
    """
    distances = torch.cdist(left.flatten(1).T, right.flatten(1).T)
    there, back = distances.argmin(1), distances.argmin(0)
    cells = torch.arange(len(there))
    is_mutual = back[there] == cells
    return cells[is_mutual], there[is_mutual]


def by(at: str) -> Explain:
    """The relevances of the matches as a map of the image, averaged over the supports of a class.

    Args:
        at: ``"layer"`` or ``"middle"``, the attribute of the subject that is explained.
    """

    def explain(subject: Subject, question: Question) -> Tensor:
        layer = getattr(subject, at)
        with torch.no_grad():
            own = subject.model(question.image)
        maps = []
        for target in question.targets:
            partners, embeddings = question.support_images[target], question.supports[target]
            images = question.image.expand(len(partners), -1, -1, -1)
            left, a = relevance(subject.model, layer, images, embeddings)
            right, b = relevance(subject.model, layer, partners, own.expand(len(partners), -1))
            drawn = torch.zeros_like(left).flatten(1)
            for pair in range(len(partners)):
                here, there = matches(a[pair], b[pair])
                drawn[pair, here] = left[pair].flatten()[here] * right[pair].flatten()[there]
            maps.append(drawn.mean(0).view(1, *left.shape[1:]))
        return torch.stack(maps)

    return explain


def relevance_map(subject: Subject, question: Question) -> Tensor:
    """The relevance alone, averaged over the supports of a class, without matches."""
    maps = []
    for target in question.targets:
        embeddings = question.supports[target]
        images = question.image.expand(len(embeddings), -1, -1, -1)
        maps.append(relevance(subject.model, subject.middle, images, embeddings)[0].mean(0, keepdim=True))
    return torch.stack(maps)


ROWS = (
    Row(PACKAGE, "PAIR-X's recipe", by("layer"), supports="images", slow=True),
    Row(PACKAGE, "PAIR-X's recipe, intermediate layer", by("middle"), supports="images", slow=True),
    Row(PACKAGE, "LRP, intermediate layer", relevance_map, slow=True),
)
