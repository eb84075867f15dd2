"""Does the map depend on what the model has learned? Cascading randomization of its parameters."""

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
        layer: name of that module; the module and all above it are random at this stage.
        pearson: correlation with the map of the trained model, ``(B,)``.
        spearman: correlation of the ranks, ``(B,)``.
        maps: of the model at this stage, ``(B, 1, h, w)``.
    """

    layer: str
    pearson: Tensor
    spearman: Tensor
    maps: Tensor


def cascading_randomization(
    model: Model, explain: Callable[[Model], Tensor], layers: Sequence[str] | None = None, seed: int = 0
) -> list[RandomizationStage]:
    """Reinitialize a model module by module from the top down, and compare the maps with those it gave before.

    Adebayo et al., "Sanity Checks for Saliency Maps" (NeurIPS 2018). A map that stays as it was does not show what
    the model has learned; one that changes may still show something else. All is done on a copy of the model, and the
    global random state is left as it was.

    A module with ``reset_parameters`` is reinitialized by that method. The parameters that any other module has of its
    own are drawn from the normal distribution with the mean and standard deviation that they have.

    Args:
        model: the embedding model.
        explain: takes a model and returns its maps ``(B, 1, h, w)``. It must look layers up by name in the model that
            it is given, because that is a copy.
        layers: names of the modules to reinitialize, in this order; a module includes its submodules. None (default):
            every module with parameters of its own, the last registered first.
        seed: of the new parameters; default 0.

    Returns:
        One stage per module.

    Raises:
        ValueError: for a layer that the model does not have or that has no parameters.

    Example:
        >>> def explain(model):
        ...     return LayerFAM(model, "layer4").attribute(queries, support=images)
        >>> stages = cascading_randomization(model, explain)
        >>> similar = {stage.layer: stage.spearman.nanmean() for stage in stages}
    """
    randomized = copy.deepcopy(model)
    modules = dict(randomized.named_modules())
    if layers is None:
        parts = [(name, [module]) for name, module in modules.items() if _own_parameters(module)][::-1]
    else:
        parts = [(name, _with_parameters(modules, name)) for name in layers]
    before = explain(randomized).detach().clone()
    stages = []
    with torch.random.fork_rng(sorted({p.device.index for p in randomized.parameters() if p.is_cuda})):
        # Far from the seeds that people train with: the same one could draw the very weights training began with.
        torch.manual_seed(0x5EED_0000 + seed)
        for name, part in parts:
            for module in part:
                _reinitialize(module)
            after = explain(randomized).detach().clone()
            pearson, spearman = map_correlation(before, after), map_correlation(before, after, "spearman")
            stages.append(RandomizationStage(name, pearson, spearman, after))
    return stages


def _own_parameters(module: nn.Module) -> list[nn.Parameter]:
    return list(module.parameters(recurse=False))


def _with_parameters(modules: dict[str, nn.Module], name: str) -> list[nn.Module]:
    part = [module for module in modules[name].modules() if _own_parameters(module)] if name in modules else []
    if not part:
        raise ValueError(f"layers: {name!r} is not a module with parameters of {type(modules['']).__name__}")
    return part


@torch.no_grad()
def _reinitialize(module: nn.Module) -> None:
    reset = getattr(module, "reset_parameters", None)
    if callable(reset):
        reset()
        return
    for parameter in _own_parameters(module):
        mean, deviation = parameter.mean(), parameter.std(unbiased=False)
        parameter.normal_().mul_(deviation).add_(mean)
