"""The losses of episodic training: the nearest-neighbor loss and the global loss, at every position of the maps."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from captum_fam.experiments.training.few_shot_recipe import FewShotRecipe
from captum_fam.experiments.two_part_model import probe_images
from captum_fam.functional import unit
from captum_fam.models import EmbeddingModel


class FewShotLosses(NamedTuple):
    """The losses of one step; all are scalars.

    Attributes:
        total: the loss that the optimizer minimizes, a sum of the two other losses with weights.
        nearest: nearest-neighbor loss, of the classification into the classes of the episode.
        everywhere: global loss, of the classification into all base classes.
        accuracy: share of the queries whose averaged map is nearest to the support of the right class.
    """

    total: Tensor
    nearest: Tensor
    everywhere: Tensor
    accuracy: Tensor


class FewShotLearner(nn.Module):
    """A network with its losses, from the images of episodes to the losses.

    The losses are those of Cross Attention Network (Hou et al., NeurIPS 2019), with learned weights (Kendall et al.,
    CVPR 2018). Let f be the map of a query, and t_w the average of the support maps of class w over shots and
    positions. Then L_nn = CE(scale * cos(f_p, t_w)) and L_glob = CE(C f_p), with a classifier C of all base classes,
    both averaged over the positions p of the query maps. The total is L = exp(-a) L_nn + exp(-b) L_glob + (a + b) / 2;
    a and b are trained, and begin with 0.

    Args:
        net: network whose embedding is the average of the map of its layer.
        n_classes: number of base classes.
        recipe: way, shot, query, scale and weighting.

    Raises:
        ValueError: if the embedding of the network is not the average of the map.

    Example:
        >>> from captum_fam.models import create_model
        >>> learner = FewShotLearner(create_model("conv4net"), n_classes=64, recipe=FewShotRecipe(way=2, query=1))
        >>> learner(torch.rand(4, 3, 84, 84), torch.tensor([[3, 7]])).total.shape
        torch.Size([])
    """

    def __init__(self, net: EmbeddingModel, n_classes: int, recipe: FewShotRecipe) -> None:
        super().__init__()
        self.model = net.model
        self.layer = net.layer
        self.recipe = recipe
        self.classifier = nn.Conv2d(_n_channels(net), n_classes, 1)
        self.log_variances = nn.Parameter(torch.zeros(2), requires_grad=recipe.weighting == "learned")

    def forward(self, images: Tensor, classes: Tensor) -> FewShotLosses:
        """Compute the losses of E episodes.

        Args:
            images: ``(E * way * (shot + query), 3, H, W)``, sorted by episode, then by class; the supports of a class
                come before the queries.
            classes: index of each class among the base classes, ``(E, way)``.

        Returns:
            The losses.
        """
        maps = _maps(self.model, self.layer, images)[0]
        with torch.autocast(maps.device.type, enabled=False):
            return self.losses(maps.float(), classes)

    def losses(self, maps: Tensor, classes: Tensor) -> FewShotLosses:
        """Compute the losses of E episodes from the maps of the images.

        Args:
            maps: ``(E * way * (shot + query), N, h, w)``, in the order of the images in :meth:`forward`.
            classes: as in :meth:`forward`.

        Returns:
            The losses.
        """
        recipe = self.recipe
        # From here on (E, way, shot + query, N, P), with P positions.
        maps = maps.unflatten(0, (-1, recipe.way, recipe.shot + recipe.query)).flatten(4)
        # The unit vectors of t_w, averaged over shots and positions: (E, way, N).
        prototypes = unit(maps[:, :, : recipe.shot].mean((2, 4)))
        queries = maps[:, :, recipe.shot :].flatten(1, 2)
        cosines = torch.einsum("eqnp,ewn->eqwp", normalize(queries, dim=2), prototypes)
        truth = torch.arange(recipe.way, device=maps.device).repeat_interleave(recipe.query).expand(len(queries), -1)
        nearest = _everywhere(recipe.scale * cosines.flatten(0, 1), truth)
        logits = self.classifier(queries.flatten(0, 1)[..., None])[..., 0]
        everywhere = _everywhere(logits, classes.repeat_interleave(recipe.query, 1))
        if recipe.weighting == "learned":
            weights = (-self.log_variances).exp()
            # a and b are logarithms of variances (Kendall et al.): a loss with a large variance counts less. The term
            # (a + b) / 2 keeps the variances from growing without limit.
            total = weights[0] * nearest + weights[1] * everywhere + self.log_variances.sum() / 2
        else:
            total = 0.5 * nearest + everywhere
        scores = torch.einsum("eqn,ewn->eqw", queries.mean(3), prototypes)
        return FewShotLosses(total, nearest, everywhere, (scores.argmax(2) == truth).float().mean())


def _maps(model: nn.Module, layer: str, images: Tensor) -> tuple[Tensor, Tensor]:
    """The output of a layer, and the embedding, of one pass through the model."""
    outputs: list[Tensor] = []
    handle = model.get_submodule(layer).register_forward_hook(lambda _, __, output: outputs.append(output))
    try:
        embedding = model(images)
    finally:
        handle.remove()
    return outputs[0], embedding


def _everywhere(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of logits ``(B, C, P)`` whose P positions all have the class of their map."""
    return cross_entropy(logits, targets.reshape(-1, 1).expand(-1, logits.shape[2]))


def _n_channels(net: EmbeddingModel) -> int:
    """The number of channels of the layer; raises a ValueError if the embedding is not the average of the map."""
    probe = probe_images(net.size)
    with torch.no_grad():
        maps, embedding = _maps(net.model.eval(), net.layer, probe.to(next(net.model.parameters()).device))
    if maps.dim() != 4 or maps.shape[1:2] != embedding.shape[1:]:
        is_average = False
    else:
        is_average = torch.allclose(unit(maps.mean((2, 3))), unit(embedding), atol=1e-4)
    if not is_average:
        raise ValueError(
            f"model {net.name}: its embedding is not the average of the map of {net.layer!r}, which few-shot training "
            "needs; choose a network without a head, or metric learning"
        )
    return maps.shape[1]
