"""Every entry point warns of a model in training mode, and of no other."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import nn

from captum_fam import LayerCorrespondence, LayerFAM, LayerSimilarityCAM, SimilarityToSupport, SupportSet, explain
from captum_fam.attr import LayerMeanActivation


class Net(nn.Sequential):
    def __init__(self) -> None:
        layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        super().__init__(*layers)


def entries(model: Any, layer: nn.Module) -> dict[str, Any]:
    x, support = torch.rand(2, 3, 8, 8), torch.rand(3, 3, 8, 8)
    return {
        "fam": lambda: LayerFAM(model, layer).attribute(x, support=support),
        "exact": lambda: LayerSimilarityCAM(model, layer).attribute(x, support=support),
        "correspondence": lambda: LayerCorrespondence(model, layer).attribute(x, support=support),
        "matches": lambda: LayerCorrespondence(model, layer).match(x, support),
        "mean activation": lambda: LayerMeanActivation(model, layer).attribute(x),
        "scores": lambda: SimilarityToSupport(model, SupportSet(support))(x),
        "explain": lambda: explain(model, x, support, layer=layer),
    }


NAMES = ["fam", "exact", "correspondence", "matches", "mean activation", "scores", "explain"]


@pytest.mark.parametrize("name", NAMES)
def test_a_model_in_training_mode_is_warned_of(name: str) -> None:
    net = Net().train()
    call = entries(net, net[2])[name]
    with pytest.warns(UserWarning, match="in training mode.*call model.eval()") as caught:
        call()
    # A method of this package warns at the line of the caller; a forward of torch is called by torch.
    assert name == "scores" or (caught[0].filename, caught[0].lineno) == (__file__, call.__code__.co_firstlineno)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("wrap", [lambda net: net, nn.DataParallel, lambda net: nn.Sequential(net, nn.Identity())])
def test_a_model_in_eval_mode_is_not_warned_of_whatever_is_around_it(name: str, wrap: Any) -> None:
    net = Net().eval()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*training mode")
        entries(wrap(net), net[2])[name]()
