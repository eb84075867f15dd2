"""Many threads on one model, one explaining object and one support."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack

from captum_fam import LayerCorrespondence, LayerFAM, LayerSimilarityCAM, SimilarityToSupport, SupportSet, Views
from captum_fam.attr import LayerMeanActivation, LayerPairs

THREADS, CALLS = 8, 120


@pytest.fixture
def net() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = [
            nn.Conv2d(3, 8, 3, 2),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3),
            nn.GELU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        ]
        return nn.Sequential(*layers).eval()


def images(count: int, seed: int) -> Tensor:
    return torch.rand(count, 3, 24, 20, generator=torch.Generator().manual_seed(seed))


def state() -> tuple[int, bool, bool]:
    modes = len(_get_current_function_mode_stack())
    return modes, torch.is_grad_enabled(), torch.is_inference_mode_enabled()


def explainers(net: nn.Sequential) -> dict[str, Any]:
    scores = SimilarityToSupport(net, SupportSet(images(4, 1), [0, 0, 1, 1]), foil="others")
    return {
        "fam": LayerFAM(net, net[3]),
        "fam without head": LayerFAM(net, net[3], transform=None),
        "exact": LayerSimilarityCAM(net, net[1]),
        "exact of scores": LayerSimilarityCAM(scores, net[1]),
        "views": LayerSimilarityCAM(Views(net, ["identity", "hflip"]), net[3]),
        "correspondence": LayerCorrespondence(net, net[3]),
        "mean activation": LayerMeanActivation(net, net[3]),
    }


NAMES = ["fam", "fam without head", "exact", "exact of scores", "views", "correspondence", "mean activation"]


def test_threads_share_one_kept_run() -> None:
    blocks = [layer for _ in range(4) for layer in (nn.Conv2d(8, 8, 1), nn.ReLU())]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(3, 8, 3), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    for parameter in net.parameters():
        parameter.data.normal_(generator=torch.Generator().manual_seed(parameter.numel()), std=0.3)
    run = LayerPairs(net, "0", biases="apart").run(images(4, 1))
    apart, fam = LayerSimilarityCAM(net, "0", biases="apart"), LayerFAM(net, "0")
    supports = [SupportSet(torch.randn(1, 8, generator=torch.Generator().manual_seed(seed))) for seed in range(THREADS)]
    expected = [run.maps(apart, support) for support in supports]

    def explain(number: int) -> None:
        support, alone = supports[number], expected[number]
        for _ in range(15):
            found = run.maps(apart, support)
            torch.testing.assert_close(found.attributions, alone.attributions)
            torch.testing.assert_close(found.shares, alone.shares)
            run.maps(fam, support)  # a backward pass without an account, which must not add to the accounts

    assert all(one.shares is not None and one.shares["bias"].abs().min() > 0 for one in expected)
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(explain, range(THREADS)))


@pytest.mark.parametrize("name", NAMES)
def test_every_thread_gets_the_map_of_its_own_request(name: str, net: nn.Sequential) -> None:
    explainer = explainers(net)[name]
    arguments = {} if name == "exact of scores" else {"support": SupportSet(images(3, 2))}
    queries = [images(1, 10 + i) for i in range(6)]
    want = [explainer.attribute(query, **arguments) for query in queries]
    with ThreadPoolExecutor(THREADS) as pool:
        found = list(pool.map(lambda i: explainer.attribute(queries[i % 6], **arguments), range(CALLS)))
        states = set(pool.map(lambda _: state(), range(THREADS)))
    for i, one in enumerate(found):
        torch.testing.assert_close(one, want[i % 6], rtol=1e-5, atol=1e-6)
    assert states == {(0, True, False)}
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


def test_different_layers_of_one_model_are_explained_at_the_same_time(net: nn.Sequential) -> None:
    made = explainers(net)
    names = [name for name in NAMES if name != "exact of scores"]
    query, support = images(2, 5), images(3, 2)
    want = {name: made[name].attribute(query, support=support) for name in names}
    with ThreadPoolExecutor(THREADS) as pool:
        jobs = [(name, pool.submit(made[name].attribute, query, support=support)) for name in names * 12]
        for name, job in jobs:
            torch.testing.assert_close(job.result(), want[name], rtol=1e-5, atol=1e-6)


def test_a_thread_that_only_predicts_notices_nothing(net: nn.Sequential) -> None:
    ready, go, seen = threading.Event(), threading.Event(), {}

    class Waits(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if threading.current_thread().name == "predicting":
                ready.set()
                go.wait(30)
            return x

    waiting = nn.Sequential(Waits(), *net).eval()
    query = images(1, 3)

    def predict() -> None:
        with torch.no_grad():
            embedding = waiting(query)
            seen.update(requires_grad=embedding.requires_grad, state=state())

    thread = threading.Thread(target=predict, name="predicting")
    explainer = LayerFAM(waiting, waiting[4])
    original = waiting[4].forward

    def forward(x: Tensor) -> Tensor:
        # While this thread explains, the other one goes through the layer.
        if threading.current_thread().name != "predicting":
            thread.start()
            ready.wait(30)
            go.set()
            thread.join(30)
        result: Tensor = original(x)
        return result

    waiting[4].forward = forward
    explainer.attribute(query, support=torch.ones(1, 8))
    assert seen == {"requires_grad": False, "state": (0, False, False)}
    assert state() == (0, True, False)


def test_an_explanation_within_the_forward_function_is_explained_too(net: nn.Sequential) -> None:
    support, maps = torch.ones(1, 8), []

    def forward(x: Tensor) -> Tensor:
        maps.append(LayerFAM(net, net[3]).attribute(x, support=support))
        embedding: Tensor = net(x)
        return embedding

    query = images(2, 4)
    want = LayerFAM(net, net[3]).attribute(query, support=support)
    torch.testing.assert_close(LayerFAM(forward, net[3]).attribute(query, support=support), want)
    torch.testing.assert_close(maps[0], want)


def test_overlapping_runs_end_the_stance_of_the_compiler(net: nn.Sequential) -> None:
    if not hasattr(torch.compiler, "set_stance"):
        pytest.skip("torch before 2.6 has no stance")
    import torch._dynamo.eval_frame as eval_frame

    before = eval_frame._stance
    fam = LayerFAM(net, net[3])
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(lambda i: fam.attribute(images(1, i), support=torch.ones(1, 8)), range(32)))
    assert eval_frame._stance == before
