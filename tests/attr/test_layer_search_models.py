"""Which models a layer can be found in, what is refused, and that nothing stays behind."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import captum_fam
from captum_fam import FoundLayer, LayerSimilarityCAM, SimilarityToSupport, TokenGrid, Views, find_layer
from captum_fam.attr.layer_search import measure_layer
from captum_fam.pooling import GAP
from tests.attr.search_models import ByHand, convolutions, images

pytestmark = pytest.mark.filterwarnings("ignore:the map explains:UserWarning")  # small nets with random weights


def test_a_model_of_views_is_looked_into() -> None:
    inner = nn.Sequential(convolutions(6, 8), GAP()).double().eval()
    net = Views(inner, ["identity", "hflip"])
    found = find_layer(net.eval(), images(1, 20, 12))
    assert (found.name, found.module) == ("model.0", inner[0])
    assert LayerSimilarityCAM(net, found.name).attribute(images(2, 20, 12), images(2, 20, 12)).shape == (2, 1, 5, 3)


def test_wrappers_are_looked_into() -> None:
    inner = nn.Sequential(convolutions(6, 8), GAP()).double().eval()
    x = images(1, 20, 12)
    assert find_layer(nn.DataParallel(inner), x).name == "module.0"
    assert find_layer(SimilarityToSupport(inner, images(2, 20, 12)).eval(), x).name == "0"


def test_the_choice_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "captum_fam"):
        find_layer(ByHand((0.01, 0.99)).double().eval(), images(1, 12, 20))
    assert "layer blocks.0 of ByHand explains 99 % of the score, by measuring" in caplog.text
    assert "TokenGrid(size=(3, 5)" in caplog.text


def test_the_model_and_the_random_numbers_are_left_as_they_were() -> None:
    net = ByHand((0.3, 0.7)).double().eval()
    net.blocks[0].train()  # a flag of a module without an effect
    net.patches.weight.requires_grad_(False)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    kept = [(m.training, len(m._forward_hooks), len(m._forward_pre_hooks), set(vars(m))) for m in net.modules()]
    state, x = torch.get_rng_state(), images(1, 12, 20).requires_grad_()
    found = find_layer(net, x)
    assert isinstance(found, FoundLayer)
    assert torch.equal(torch.get_rng_state(), state)
    assert [(m.training, len(m._forward_hooks), len(m._forward_pre_hooks), set(vars(m))) for m in net.modules()] == kept
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())
    assert x.grad is None
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_the_grad_mode_around_does_not_matter(mode: Callable[[], Any]) -> None:
    net, x = ByHand((0.01, 0.99)).double().eval(), images(1, 12, 20)
    with mode():
        assert find_layer(net, x) == find_layer(net, x)
        assert find_layer(net, x.clone()).name == "blocks.0"


def test_threads_do_not_disturb_each_other() -> None:
    net, x = ByHand((0.01, 0.02, 0.97)).double().eval(), images(1, 12, 20)
    found: list[str] = []

    def work() -> None:
        for _ in range(3):
            with torch.no_grad():
                net(x)
            found.append(find_layer(net, x).name)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == ["blocks.1"] * 12


def test_the_model_runs_a_few_times_only() -> None:
    def passes(net: nn.Module, x: Tensor) -> int:
        count = []
        handle = net.register_forward_pre_hook(lambda *_: count.append(1))
        find_layer(net, x)
        handle.remove()
        return len(count)

    convolutional = nn.Sequential(convolutions(6, 8, 8, 8, 8, 8), GAP()).double().eval()
    assert passes(convolutional, images(1, 70, 90)) == 2
    deep = ByHand((0.01,) * 20 + (0.8,)).double().eval()
    assert passes(deep, images(1, 12, 20)) <= 10


def count_passes(net: nn.Module) -> list[int]:
    """A list that grows by one in every pass of the network."""
    passes: list[int] = []
    net.register_forward_pre_hook(lambda *_: passes.append(1))
    return passes


def test_a_search_past_many_layers_without_a_map_has_a_bound() -> None:
    """Behind the second block the class token has all, and the patches of the other 100 reach nothing."""
    net = ByHand((0.5, 0.5) + (0.0,) * 100).double().eval()
    passes = count_passes(net)
    found = find_layer(net, images(1, 12, 20))
    assert found.coverage == pytest.approx(1.0)
    assert found.name in ("patches", "joined")
    assert len(passes) <= 1 + 48


def test_a_search_that_ends_without_a_layer_has_a_bound_too() -> None:
    """The embedding is a bias alone: no layer has a map or an influence."""
    last = nn.Linear(4, 5)
    net = nn.Sequential(*(nn.Conv2d(3 if not i else 4, 4, 1) for i in range(150)), GAP(), last).double().eval()
    nn.init.zeros_(last.weight)
    passes = count_passes(net)
    with pytest.raises(ValueError, match="name a layer"):
        find_layer(net, images(1, 4, 6))
    assert len(passes) <= 1 + 4 * 48


def test_on_the_meta_device_the_last_layer_is_taken_unmeasured() -> None:
    with torch.device("meta"):
        net = nn.Sequential(convolutions(6, 8), GAP(), nn.Linear(8, 4)).eval()
        found = find_layer(net, torch.rand(1, 3, 20, 12))
    assert found.name == "0"
    assert found.coverage != found.coverage


# What is refused


def test_a_function_is_refused() -> None:
    with pytest.raises(TypeError, match=r"model .*got function"):
        find_layer(lambda x: x.mean((2, 3)), images(1, 7, 5))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="inputs must be a tensor"):
        find_layer(nn.Identity(), [images(1, 7, 5)])  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(3, 8), (0, 3, 8, 8)])
def test_what_is_no_batch_of_images_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"inputs must be a batch.*got shape"):
        find_layer(nn.Identity().eval(), torch.zeros(shape))


def test_a_model_without_positions_is_refused() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 7 * 5, 4)).double().eval()
    with pytest.raises(ValueError, match=r"model Sequential .*name a layer"):
        find_layer(net, images(1, 7, 5))


def test_a_model_that_is_all_run_several_times_is_told_of_views() -> None:
    class Mirrored(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(convolutions(6, 8), GAP())

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x) + self.net(x.flip(-1))

    with pytest.raises(ValueError, match=r"net\.0 .*Views"):
        find_layer(Mirrored().double().eval(), images(1, 20, 12))


class Mirrored(nn.Module):
    """Two views in one batch, which stay apart in the output."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(convolutions(6, 8), GAP())

    def forward(self, x: Tensor) -> Tensor:
        embeddings: Tensor = self.net(torch.cat([x, x.flip(-1)]))
        return embeddings


def test_more_embeddings_than_images_are_said_to_be_views() -> None:
    for search in (find_layer, lambda net, x: measure_layer(net, x, "net.0")):
        with pytest.raises(ValueError, match=r"Mirrored gives 4 embeddings for a batch of 2 images.*Views"):
            search(Mirrored().double().eval(), images(3, 20, 12))


def test_an_embedding_of_zeros_is_said_to_be_zero() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), GAP()).double().eval()
    nn.init.zeros_(net[0].weight)
    nn.init.constant_(net[0].bias, -1.0)
    with pytest.raises(ValueError, match="Sequential can be found: the embedding of the first image is zero"):
        find_layer(net, images(2, 7, 5))


def test_of_an_embedding_that_is_zero_for_one_image_only_the_influence_is_measured() -> None:
    """A black image has a zero embedding, and noise has not."""
    net = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.ReLU(), GAP()).double().eval()
    x = torch.zeros(1, 3, 7, 5, dtype=torch.float64)
    assert find_layer(net, x).name == "1"


def test_nan_is_said_to_come_from_the_image_or_from_the_model() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), GAP()).double().eval()
    x = images(2, 7, 5)
    x[0, 1, 2, 3] = torch.nan
    with pytest.raises(ValueError, match="Sequential can be found: the first image has NaN or inf"):
        find_layer(net, x)
    nn.init.constant_(net[0].bias, torch.inf)
    with pytest.raises(ValueError, match="its embedding of the first image has NaN or inf"):
        find_layer(net, images(2, 7, 5))


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
def test_a_scripted_model_is_told_to_come_as_it_was() -> None:
    net = torch.jit.script(nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).double().eval())
    with pytest.raises(ValueError, match="scripted, traced or exported"):
        find_layer(net, images(1, 7, 5))


def test_a_model_in_training_mode_is_refused() -> None:
    with pytest.raises(ValueError, match=r"model .*\(BatchNorm2d\).*model\.eval\(\)"):
        find_layer(nn.Sequential(convolutions(6, 8), GAP()), images(1, 20, 12, dtype=torch.float32))


def test_hooks_are_gone_even_after_an_error() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(99, 4)).double().eval()
    with pytest.raises(RuntimeError):
        find_layer(net, images(1, 5, 5))
    assert not any(module._forward_hooks for module in net.modules())


# A layer that was chosen


def test_a_chosen_layer_is_measured() -> None:
    net = ByHand((0.4, 0.6)).double().eval()
    found = measure_layer(net, images(1, 12, 20), "blocks.0")
    assert (found.name, found.token_grid) == ("blocks.0", TokenGrid(size=(3, 5)))
    assert found.coverage == pytest.approx(0.6, abs=1e-12)
    assert measure_layer(net, images(1, 12, 20), net.patches).token_grid is None
    assert measure_layer(net, images(1, 12, 20), "norm").coverage == 0  # no position has an influence there


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("1", "layer '1' of Sequential gives no tensor with positions"),
        ("0.0.3", "layer '0.0.3' .*Sequential"),
    ],
)
def test_a_chosen_layer_without_positions_is_refused(layer: str, message: str) -> None:
    net = nn.Sequential(convolutions(6, 8), GAP()).double().eval()
    with pytest.raises(ValueError, match=message):
        measure_layer(net, images(1, 20, 12), layer)


def test_find_layer_is_public() -> None:
    assert captum_fam.find_layer is captum_fam.attr.find_layer is find_layer
    assert captum_fam.FoundLayer is FoundLayer
