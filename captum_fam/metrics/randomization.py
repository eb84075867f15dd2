"""Does the map depend on what the model has learned? Cascading randomization of the parameters."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from captum_fam.metrics.correlation import map_correlation

Model = TypeVar("Model", bound=nn.Module)


class RandomizationStage(NamedTuple):
    """The maps after one more module of the model was reinitialized.

    Attributes:
        layer: name of the module; at this stage it is random, as are all modules before it in the list of stages.
        pearson: correlation of each map with the map of the trained model, ``(B,)``.
        spearman: correlation of the ranks of their pixels, ``(B,)``.
        maps: maps of the model at this stage, ``(B, 1, h, w)``.
    """

    layer: str
    pearson: Tensor
    spearman: Tensor
    maps: Tensor


def cascading_randomization(
    model: Model, explain: Callable[[Model], Tensor], layers: Sequence[str] | None = None, seed: int = 0
) -> list[RandomizationStage]:
    """Reinitialize a model module by module from the top down, and compare the maps with those of the trained model.

    The test of Adebayo et al., "Sanity Checks for Saliency Maps" (NeurIPS 2018). If the maps do not change, they do not
    show what the model has learned. If they change, they may still show something else. The function works on a copy
    of the model, and leaves the global random state as it was.

    A module with a method ``reset_parameters`` is reinitialized by that method. The direct parameters of any other
    module are drawn from a normal distribution with their own mean and standard deviation.

    Args:
        model: the embedding model.
        explain: function that takes a model and returns maps ``(B, 1, h, w)``. It must look up layers by name in its
            argument, which is a copy of ``model``.
        layers: names of the modules to reinitialize, in this order; a module includes its submodules. None for every
            module with direct parameters, the last registered module first. Default: None.
        seed: seed of the new parameters. Default: 0.

    Returns:
        One stage per module.

    Raises:
        ValueError: for a layer that the model does not have, or that has no parameters.

    Example:
        >>> def explain(model):
        ...     return LayerFAM(model, "layer4").attribute(queries, support=images)
        >>> stages = cascading_randomization(model, explain)
        >>> similar = {stage.layer: stage.spearman.nanmean() for stage in stages}
    """
    randomized = copy.deepcopy(model)
    modules = dict(randomized.named_modules())
    if layers is None:
        parts = [(name, [module]) for name, module in modules.items() if _direct_parameters(module)][::-1]
    else:
        parts = [(name, _with_parameters(modules, name)) for name in layers]
    trained_maps = explain(randomized).detach().clone()
    stages = []
    with torch.random.fork_rng(sorted({p.device.index for p in randomized.parameters() if p.is_cuda})):
        # An offset that makes the seed unlike common seeds. The seed of the training could draw the weights with which
        # the training began.
        torch.manual_seed(0x5EED_0000 + seed)
        for name, part in parts:
            for module in part:
                _reinitialize(module)
            maps = explain(randomized).detach().clone()
            pearson, spearman = map_correlation(trained_maps, maps), map_correlation(trained_maps, maps, "spearman")
            stages.append(RandomizationStage(name, pearson, spearman, maps))
    return stages


def _direct_parameters(module: nn.Module) -> list[nn.Parameter]:
    return list(module.parameters(recurse=False))


def _with_parameters(modules: dict[str, nn.Module], name: str) -> list[nn.Module]:
    """The named module and its submodules, without those that have no direct parameters."""
    part = [module for module in modules[name].modules() if _direct_parameters(module)] if name in modules else []
    if not part:
        raise ValueError(f"layers: {name!r} is not a module with parameters of {type(modules['']).__name__}")
    return part


@torch.no_grad()
def _reinitialize(module: nn.Module) -> None:
    reset = getattr(module, "reset_parameters", None)
    if callable(reset):
        reset()
        return
    for parameter in _direct_parameters(module):
        mean, deviation = parameter.mean(), parameter.std(unbiased=False)
        parameter.normal_().mul_(deviation).add_(mean)
