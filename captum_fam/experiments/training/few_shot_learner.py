"""The losses of episodic training: nearest neighbor and global, at every position of the maps."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from captum_fam.experiments.training.few_shot_recipe import FewShotRecipe
from captum_fam.functional import unit
from captum_fam.models import EmbeddingModel


class FewShotLosses(NamedTuple):
    """The losses of one step, scalars.

    Attributes:
        total: what the optimizer lowers.
        nearest: nearest-neighbor loss: which of the episode's classes, at every position of the query map.
        everywhere: global loss: which of all base classes, at every position of the query map.
        accuracy: share of the queries whose averaged map is nearest to the support of their class.
    """

    total: Tensor
    nearest: Tensor
    everywhere: Tensor
    accuracy: Tensor


class FewShotLearner(nn.Module):
    """A network with its losses: episodes of images in, losses out.

    With f the map of an image and t_w the average of the support maps of class w over shots and positions:
    L_nn = CE(scale * cos(f_p, t_w)), L_glob = CE(C f_p) with a classifier C of all base classes, both averaged over
    the positions p of the query maps; L = exp(-a) L_nn + exp(-b) L_glob + (a + b) / 2, a and b trained from 0.

    Args:
        net: whose embedding is the average of the map of its layer.
        n_classes: base classes.
        recipe: way, shot, query, scale and weighting.
    """

    def __init__(self, net: EmbeddingModel, n_classes: int, recipe: FewShotRecipe) -> None:
        super().__init__()
        self.model = net.model
        self.layer = net.layer
        self.recipe = recipe
        self.classifier = nn.Conv2d(_n_channels(net), n_classes, 1)
        self.log_variances = nn.Parameter(torch.zeros(2), requires_grad=recipe.weighting == "learned")

    def forward(self, images: Tensor, classes: Tensor) -> FewShotLosses:
        """The losses of some episodes.

        Args:
            images: per episode class by class, the supports of a class before its queries:
                ``(E * way * (shot + query), 3, H, W)``.
            classes: positions among the base classes, ``(E, way)``.
        """
        maps = _maps(self.model, self.layer, images)[0]
        with torch.autocast(maps.device.type, enabled=False):
            return self.losses(maps.float(), classes)

    def losses(self, maps: Tensor, classes: Tensor) -> FewShotLosses:
        """The losses of the maps ``(E * way * (shot + query), N, h, w)`` of these images."""
        recipe = self.recipe
        # E episodes, W classes, I images of a class, N channels, P positions.
        maps = maps.unflatten(0, (-1, recipe.way, recipe.shot + recipe.query)).flatten(4)
        # t_w: one direction per class, averaged over shots and positions.
        prototypes = unit(maps[:, :, : recipe.shot].mean((2, 4)))
        queries = maps[:, :, recipe.shot :].flatten(1, 2)
        cosines = torch.einsum("eqnp,ewn->eqwp", normalize(queries, dim=2), prototypes)
        truth = torch.arange(recipe.way, device=maps.device).repeat_interleave(recipe.query).expand(len(queries), -1)
        nearest = _everywhere(recipe.scale * cosines.flatten(0, 1), truth)
        logits = self.classifier(queries.flatten(0, 1)[..., None])[..., 0]
        everywhere = _everywhere(logits, classes.repeat_interleave(recipe.query, 1))
        if recipe.weighting == "learned":
            weights = (-self.log_variances).exp()
            # Kendall et al., with a the log of a variance: a loss of large variance counts less, and (a + b) / 2
            # keeps the variances from growing without end.
            total = weights[0] * nearest + weights[1] * everywhere + self.log_variances.sum() / 2
        else:
            total = 0.5 * nearest + everywhere
        scores = torch.einsum("eqn,ewn->eqw", queries.mean(3), prototypes)
        return FewShotLosses(total, nearest, everywhere, (scores.argmax(2) == truth).float().mean())


def _maps(model: nn.Module, layer: str, images: Tensor) -> tuple[Tensor, Tensor]:
    """The output of a layer, and the embedding."""
    found: list[Tensor] = []
    handle = model.get_submodule(layer).register_forward_hook(lambda _, __, output: found.append(output))
    try:
        embedding = model(images)
    finally:
        handle.remove()
    return found[0], embedding


def _everywhere(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of ``(B, C, P)`` with one class for all positions of a map."""
    return cross_entropy(logits, targets.reshape(-1, 1).expand(-1, logits.shape[2]))


def _n_channels(net: EmbeddingModel) -> int:
    """The channels of the layer; refuses a network whose embedding is not the average of them."""
    probe = torch.rand(2, 3, net.size, net.size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        maps, embedding = _maps(net.model.eval(), net.layer, probe.to(next(net.model.parameters()).device))
    if maps.dim() != 4 or maps.shape[1:2] != embedding.shape[1:]:
        same = False
    else:
        same = torch.allclose(unit(maps.mean((2, 3))), unit(embedding), atol=1e-4)
    if not same:
        raise ValueError(
            f"model {net.name}: its embedding is not the average of the map of {net.layer!r}, which few-shot training "
            "needs; choose a network without a head, or metric learning"
        )
    return maps.shape[1]
