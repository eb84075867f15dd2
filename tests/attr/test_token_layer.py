"""Captum's layer methods on tokens, against gradients that are taken by hand."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import captum.attr
import pytest
import torch
from captum.attr import LayerActivation, LayerFeatureAblation, LayerGradCam, LayerIntegratedGradients, NoiseTunnel
from torch import Tensor, nn

from captum_fam import LayerFAM, SimilarityToSupport, SupportSet, TokenGrid, explain
from captum_fam.attr import get_method
from captum_fam.attr.token_layer import TokenLayerAttribution

# Two registers behind the class token, 3 x 5 patches, 6 channels, embeddings of 4 features.
HEIGHT, WIDTH, PREFIX, CHANNELS = 3, 5, 3, 6
GRID = TokenGrid(size=(HEIGHT, WIDTH), prefix_tokens=PREFIX)
# Channels-first grids of each order of the tokens, and the tokens that belong to a grid.
ORDERS: dict[str, tuple[Any, Callable[[Tensor], Tensor]]] = {
    "batch first": (GRID, lambda tokens: tokens),
    "tokens first": (TokenGrid(size=(HEIGHT, WIDTH), prefix_tokens=PREFIX, sequence_first=True), torch.Tensor.t),
    "class token in the middle": (
        TokenGrid(size=(HEIGHT, WIDTH), prefix_tokens=2, class_token=8),
        lambda tokens: torch.cat([tokens[:, :2], tokens[:, 3:9], tokens[:, 2:3], tokens[:, 9:]], 1),
    ),
    "a function": (lambda tokens: tokens[:, PREFIX:].mT.unflatten(2, (HEIGHT, WIDTH)), lambda tokens: tokens),
}


class Tokens(nn.Module):
    """Rearranges tokens ``(B, T, N)`` into the order of a model."""

    def __init__(self, order: str) -> None:
        super().__init__()
        self.order = order

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens.transpose(0, 1) if self.order == "tokens first" else ORDERS[self.order][1](tokens)


class Transformer(nn.Module):
    """Class token, registers and patches, mixed by a layer that is no attention; the embedding is the class token."""

    def __init__(self, order: str = "batch first") -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, CHANNELS, 4, 4)
        self.special = nn.Parameter(torch.randn(1, PREFIX, CHANNELS))
        self.tokens = Tokens(order)
        self.mix = nn.Linear(PREFIX + HEIGHT * WIDTH, 4)
        self.head = nn.Linear(CHANNELS, 4)

    def forward(self, images: Tensor) -> Tensor:
        patches = self.patches(images).flatten(2).mT
        return self.rest(self.tokens(torch.cat([self.special.expand(len(images), -1, -1), patches], 1).tanh()))

    def rest(self, tokens: Tensor) -> Tensor:
        tokens = tokens.transpose(0, 1) if self.tokens.order == "tokens first" else tokens
        return self.head(self.mix(tokens.mT).tanh().mean(2)) + tokens[:, 0, :4]


def setup(order: str = "batch first") -> tuple[Transformer, SimilarityToSupport, Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Transformer(order).double().eval()
        supports = torch.rand(4, 3, 4 * HEIGHT, 4 * WIDTH, dtype=torch.float64)
        queries = torch.rand(3, 3, 4 * HEIGHT, 4 * WIDTH, dtype=torch.float64)
    return model, SimilarityToSupport(model, SupportSet(supports, [0, 1, 1, 0])), queries


def by_hand(model: Transformer, scores: SimilarityToSupport, queries: Tensor, target: int) -> tuple[Tensor, Tensor]:
    """The activation and the gradient of the score on the patches, ``(B, N, h, w)`` each."""
    kept: list[Tensor] = []
    handle = model.tokens.register_forward_hook(lambda *call: kept.append(call[2]))
    support = scores.embedded()
    embedding = model(queries)
    handle.remove()
    cosines = nn.functional.cosine_similarity(embedding[:, None], support.embeddings()[None], dim=2)
    score = cosines[:, scores.support.labels == target].mean(1)
    (gradient,) = torch.autograd.grad(score.sum(), kept[0])
    tokens = (kept[0], gradient)
    if model.tokens.order == "tokens first":
        tokens = (kept[0].transpose(0, 1), gradient.transpose(0, 1))
    if model.tokens.order == "class token in the middle":
        tokens = tuple(torch.cat([part[:, 2:8], part[:, 9:]], 1) for part in tokens)
    activation, gradient = (part[:, -HEIGHT * WIDTH :].mT.reshape(-1, CHANNELS, HEIGHT, WIDTH) for part in tokens)
    return activation.detach(), gradient


@pytest.mark.parametrize("order", ORDERS)
def test_grad_cam_of_tokens_is_that_of_their_grid(order: str) -> None:
    model, scores, queries = setup(order)
    activation, gradient = by_hand(model, scores, queries, target=1)
    expected = (gradient.mean((2, 3), keepdim=True) * activation).sum(1, keepdim=True)
    method = get_method("grad-cam").create(scores, model.tokens, token_grid=ORDERS[order][0])
    torch.testing.assert_close(method.attribute(queries, target=1), expected)
    positive = method.attribute(queries, target=1, relu_attributions=True)
    torch.testing.assert_close(positive, expected.relu())


def test_every_gradient_method_sees_the_patches_only() -> None:
    model, scores, queries = setup()
    activation, gradient = by_hand(model, scores, queries, target=0)

    def attribute(make: Any, *args: Any, **options: Any) -> Tensor:
        method = TokenLayerAttribution(make, scores, model.tokens, GRID)
        return method.attribute(queries, *args, **options)

    torch.testing.assert_close(attribute(LayerActivation), activation)
    torch.testing.assert_close(attribute(captum.attr.LayerGradientXActivation, 0), activation * gradient)
    smooth = attribute(
        lambda *made: NoiseTunnel(LayerGradCam(*made)), target=0, stdevs=0.0, nt_samples=2, nt_type="smoothgrad"
    )
    torch.testing.assert_close(smooth, (gradient.mean((2, 3), keepdim=True) * activation).sum(1, keepdim=True))


def test_integrated_gradients_add_up_to_the_score_without_the_patches() -> None:
    model, scores, queries = setup()
    method = TokenLayerAttribution(LayerIntegratedGradients, scores, model.tokens, GRID)
    assert method.has_convergence_delta()
    maps, delta = method.attribute(queries, target=1, n_steps=100, return_convergence_delta=True)
    assert maps.shape == (3, CHANNELS, HEIGHT, WIDTH)
    with torch.no_grad():
        # The baseline is an image of zeros, whose tokens are constant.
        difference = (scores(queries) - scores(torch.zeros_like(queries)))[:, 1]
    torch.testing.assert_close(maps.flatten(1).sum(1), difference + delta)
    assert not TokenLayerAttribution(LayerGradCam, scores, model.tokens, GRID).has_convergence_delta()


def test_an_ablated_position_is_one_token() -> None:
    model, scores, queries = setup()
    positions = torch.arange(HEIGHT * WIDTH).view(1, 1, HEIGHT, WIDTH)
    method = TokenLayerAttribution(LayerFeatureAblation, scores, model.tokens, GRID)
    maps = method.attribute(queries, target=0, layer_mask=positions)
    kept: list[Tensor] = []
    handle = model.tokens.register_forward_hook(lambda *call: kept.append(call[2]))
    with torch.no_grad():
        score = scores(queries)[:, 0]
        handle.remove()
        tokens = kept[0].clone()
        tokens[:, PREFIX + 7] = 0  # row 1, column 2
        ablated = SimilarityToSupport(model.rest, scores.embedded())(tokens)[:, 0]
    torch.testing.assert_close(maps[:, 0, 1, 2], score - ablated)


def test_the_input_of_a_layer_is_explained_on_the_grid_too() -> None:
    model, scores, queries = setup()
    activation, gradient = by_hand(model, scores, queries, target=0)
    model.late = nn.Identity()
    rest = model.rest
    model.rest = lambda tokens: rest(model.late(tokens))
    method = TokenLayerAttribution(captum.attr.LayerGradientXActivation, scores, model.late, GRID)
    for inputs in ({"attribute_to_layer_input": True}, {}):
        torch.testing.assert_close(method.attribute(queries, target=0, **inputs), activation * gradient)


def test_hooks_go_and_tokens_stay_also_after_an_error() -> None:
    model, scores, queries = setup()
    expected = scores(queries)
    for grid, message in (
        (TokenGrid(size=(4, 4), prefix_tokens=PREFIX), "do not fill a grid of 4 x 4"),
        (lambda tokens: GRID(tokens) * 2, "token_grid: it computes new values"),
        (lambda tokens: GRID(tokens).float().mean(1, keepdim=True), "token_grid: it computes new values"),
    ):
        method = TokenLayerAttribution(LayerGradCam, scores, model.tokens, grid)
        with pytest.raises(ValueError, match=message):
            method.attribute(queries, target=0)
    assert not model.tokens._forward_hooks
    assert not model.tokens._forward_pre_hooks
    torch.testing.assert_close(scores(queries), expected, rtol=0, atol=0)


def test_another_thread_runs_the_model_as_it_is() -> None:
    model, scores, queries = setup()
    seen: list[Tensor] = []

    class Asks(LayerGradCam):
        def attribute(self, *args: Any, **kwargs: Any) -> Any:
            thread = threading.Thread(target=lambda: seen.append(other.attribute(queries, target=1)))
            thread.start()
            thread.join()
            return super().attribute(*args, **kwargs)

    other = TokenLayerAttribution(LayerGradCam, scores, model.tokens, TokenGrid(size=(5, 3), prefix_tokens=PREFIX))
    expected = other.attribute(queries, target=1)
    alone = TokenLayerAttribution(LayerGradCam, scores, model.tokens, GRID).attribute(queries, target=0)
    method = TokenLayerAttribution(Asks, scores, model.tokens, GRID)
    torch.testing.assert_close(method.attribute(queries, target=0), alone)
    torch.testing.assert_close(seen, [expected])


def test_a_method_that_takes_a_grid_gets_it() -> None:
    model, scores, queries = setup()
    expected = LayerFAM(scores, model.tokens, token_grid=GRID).attribute(queries, target=0)

    def make(scores: Any, layer: nn.Module, **options: Any) -> LayerFAM:
        return LayerFAM(scores, layer, **options)

    for method in ("fam", make):
        created = get_method(method).create(scores, model.tokens, token_grid=GRID)
        assert isinstance(created, LayerFAM)
        torch.testing.assert_close(created.attribute(queries, target=0), expected)
    with pytest.raises(TypeError, match="layer: grad-cam takes a single layer of tokens, got list"):
        get_method("grad-cam").create(scores, [model.tokens], token_grid=GRID)


@pytest.mark.parametrize("method", ["grad-cam", captum.attr.LayerGradientXActivation])
def test_explain_takes_captums_methods_for_tokens(method: Any) -> None:
    model, scores, queries = setup()
    activation, gradient = by_hand(model, scores, queries, target=0)
    why = explain(
        model, queries, scores.support, layer="tokens", method=method, target=0, token_grid=GRID, batch_size=2
    )
    weights = gradient.mean((2, 3), keepdim=True) if method == "grad-cam" else gradient
    torch.testing.assert_close(why.attributions, (weights * activation).sum(1, keepdim=True))
    assert why.maps.shape == (3, 1, 12, 20)
