from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

from captum_fam import LayerFAM
from captum_fam.attr.baselines import LayerUniform
from captum_fam.metrics import cascading_randomization, map_correlation


def make_model() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        layers = {
            "stem": nn.Conv2d(3, 6, 3, padding=1),
            "norm": nn.BatchNorm2d(6),
            "act": nn.ReLU(),
            "last": nn.Conv2d(6, 5, 3, padding=1),
            "relu": nn.ReLU(),
            "pool": nn.AdaptiveAvgPool2d(1),
            "flat": nn.Flatten(),
            "head": nn.Linear(5, 4),
        }
    model = nn.Sequential()
    for name, layer in layers.items():
        model.add_module(name, layer)
    return model.eval()


def fam(model: nn.Module) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(5, 3, 9, 7, generator=generator)
    maps = LayerFAM(model, "relu", normalization="none").attribute(images[:2], support=images[2:])
    assert isinstance(maps, Tensor)
    return maps


def test_modules_are_randomised_from_the_top_down_and_stay_so() -> None:
    model = make_model()
    seen: list[dict[str, Tensor]] = []

    def explain(copy: nn.Module) -> Tensor:
        seen.append({name: tensor.clone() for name, tensor in copy.state_dict().items()})
        return fam(copy)

    stages = cascading_randomization(model, explain)
    assert [stage.layer for stage in stages] == ["head", "last", "norm", "stem"]
    changed = [{name for name in now if not now[name].equal(seen[0][name])} for now in seen]
    assert changed[0] == set()
    assert changed[1] == {"head.weight", "head.bias"}
    assert changed[2] == changed[1] | {"last.weight", "last.bias"}
    assert changed[4] >= changed[2] | {"stem.weight", "stem.bias"}
    for earlier, later in itertools.pairwise(seen[1:]):
        assert earlier["head.weight"].equal(later["head.weight"])


def test_correlations_are_with_the_map_of_the_trained_model() -> None:
    model = make_model()
    before = fam(model)
    for stage in cascading_randomization(model, fam):
        torch.testing.assert_close(stage.pearson, map_correlation(before, stage.maps))
        torch.testing.assert_close(stage.spearman, map_correlation(before, stage.maps, "spearman"))
        assert stage.maps.shape == before.shape


def test_the_last_stage_forgets_the_trained_map() -> None:
    model = make_model()
    stages = cascading_randomization(model, fam)
    assert (stages[-1].spearman.abs() < 0.9).all()


def test_a_map_blind_to_the_model_never_changes() -> None:
    def explain(model: nn.Module) -> Tensor:
        ramp = torch.arange(63.0).view(1, 1, 9, 7)
        uniform = LayerUniform(model, "relu").attribute(torch.zeros(2, 3, 9, 7))
        assert isinstance(uniform, Tensor)
        return uniform * ramp

    for stage in cascading_randomization(make_model(), explain):
        torch.testing.assert_close(stage.spearman, torch.ones(2))


def test_model_and_global_random_state_are_untouched() -> None:
    model = make_model()
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    cascading_randomization(model, fam)
    assert torch.get_rng_state().equal(state)
    assert all(tensor.equal(weights[name]) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def test_the_seed_decides() -> None:
    model = make_model()
    first, again, other = (cascading_randomization(model, fam, seed=seed)[-1].maps for seed in (0, 0, 1))
    assert first.equal(again)
    assert not first.equal(other)


def test_new_weights_are_not_those_that_training_may_have_begun_with() -> None:
    for seed in range(3):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(4, 9))
        weights: list[Tensor] = []

        def explain(copy: nn.Sequential, seen: list[Tensor] = weights) -> Tensor:
            seen.append(copy[0].weight.detach().clone())
            return torch.rand(1, 1, 3, 3)

        cascading_randomization(model, explain, seed=seed)
        assert not weights[0].equal(weights[1])


def test_layers_choose_modules_with_all_below_them_and_their_order() -> None:
    model = nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()), nn.Conv2d(4, 5, 1))
    seen: list[dict[str, Tensor]] = []

    def explain(copy: nn.Module) -> Tensor:
        seen.append({name: tensor.clone() for name, tensor in copy.state_dict().items()})
        return torch.rand(1, 1, 3, 3)

    stages = cascading_randomization(model, explain, layers=["0", "1"])
    assert [stage.layer for stage in stages] == ["0", "1"]
    assert not seen[1]["0.0.weight"].equal(seen[0]["0.0.weight"])
    assert seen[1]["1.weight"].equal(seen[0]["1.weight"])


class OwnParameters(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(2000) * 3 + 10)

    def forward(self, x: Tensor) -> Tensor:
        return x


def test_parameters_without_a_reset_are_drawn_anew_with_their_mean_and_spread() -> None:
    model = OwnParameters()
    tokens: list[Tensor] = []

    def explain(copy: OwnParameters) -> Tensor:
        tokens.append(copy.token.detach().clone())
        return torch.rand(1, 1, 3, 3)

    cascading_randomization(model, explain)
    before, after = tokens
    assert map_correlation(before[None], after[None]).abs() < 0.1
    torch.testing.assert_close(after.mean(), before.mean(), rtol=0.05, atol=0)
    torch.testing.assert_close(after.std(), before.std(), rtol=0.1, atol=0)


@pytest.mark.parametrize("name", ["layer4", "relu"])
def test_layers_without_parameters_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"layers.*'{name}'"):
        cascading_randomization(make_model(), fam, layers=[name])
