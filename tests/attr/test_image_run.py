"""Maps of any method from one kept run, which equal those of a run of their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from captum.attr import LayerGradCam
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention as attention
from torch.testing import assert_close

from captum_fam import LayerFAM, LayerSimilarityCAM, LayerSimilarityShapley, SimilarityToSupport, SupportSet
from captum_fam.attr import EmbeddingParts, LayerEigenCAM, LayerPairs, embedding_parts
from tests.attr.pair_models import CASES, make_case

pytestmark = [
    pytest.mark.filterwarnings("ignore:the map :UserWarning"),
    pytest.mark.filterwarnings("ignore:more than half of a map's energy:UserWarning"),
]

every_case = pytest.mark.parametrize("case", CASES)


def run_of(name: str) -> tuple[Any, Any]:
    case = make_case(name)
    return case, LayerPairs(case.model, case.layer, **case.options).run(case.inputs)


@every_case
def test_maps_of_fam_equal_those_of_its_own_run(case: str) -> None:
    given, run = run_of(case)
    fam = LayerFAM(given.model, given.layer, token_grid=given.options.get("token_grid"))
    support = SupportSet(run.embedding.flip(0), ["a", "b", "a"])
    kept, own = run.maps(fam, support), fam.details(given.inputs, support)
    assert_close(kept.attributions, own.attributions, rtol=1e-10, atol=1e-14)
    assert_close(kept.contributions, own.contributions, rtol=1e-10, atol=1e-14)
    assert_close(kept.comparison.score, own.comparison.score)


@every_case
def test_maps_of_similarity_cam_equal_those_of_its_own_run(case: str) -> None:
    given, run = run_of(case)
    scores = SimilarityToSupport(given.model, SupportSet(run.embedding.flip(0), ["a", "b", "a"]), foil="others")
    cam = LayerSimilarityCAM(scores, given.layer, **given.options)
    kept, own = run.maps(cam, target=1), cam.details(given.inputs, target=1)
    assert_close(kept.attributions, own.attributions, rtol=1e-10, atol=1e-14)
    assert_close(kept.coverage, own.coverage)
    assert_close(kept.shares, own.shares, rtol=1e-10, atol=1e-13)


def test_one_run_serves_any_number_of_maps_and_the_parts() -> None:
    case = make_case("vit")
    runs = []
    case.model.patches.register_forward_hook(lambda *_: runs.append(1))
    run = LayerPairs(case.model, case.layer, **case.options).run(case.inputs)
    cam = LayerSimilarityCAM(case.model, case.layer, **case.options)
    cam.has_warned = True
    before = run.maps(cam, run.embedding[:1]).attributions
    parts = run.parts()
    fam = LayerFAM(case.model, case.layer, token_grid=case.options["token_grid"])
    run.maps(fam, run.embedding[:2])
    run.maps(LayerEigenCAM(case.model, case.layer, token_grid=case.options["token_grid"]))
    assert torch.equal(run.maps(cam, run.embedding[:1]).attributions, before)
    assert run.parts() is parts
    assert len(runs) == 1


@every_case
def test_parts_give_the_account_of_any_linear_score(case: str) -> None:
    given, run = run_of(case)
    cam = LayerSimilarityCAM(given.model, given.layer, similarity="dot", **given.options)
    weights = torch.randn(*run.embedding.shape, dtype=torch.float64)
    details = run.maps(cam, weights.unsqueeze(1))
    map_, shares = run.parts().account(weights)
    assert_close(map_, details.attributions, rtol=1e-10, atol=1e-12)
    for name, share in shares.items():
        assert_close(share, details.shares[name], rtol=1e-9, atol=1e-12)


def test_parts_of_some_images() -> None:
    _, run = run_of("vit")
    parts = run.parts()
    assert len(run) == len(parts) == 3
    one = parts[-1]
    assert isinstance(one, EmbeddingParts)
    assert len(one) == 1
    assert one.grid == (3, 4)
    assert torch.equal(one.positions[0], parts.positions[2])
    assert torch.equal(one.descriptors[0], parts.descriptors[2])
    assert torch.equal(parts[:2].others["class token"], parts.others["class token"][:2])
    with pytest.raises(IndexError):
        parts[3]


def test_descriptors_are_unit_vectors_of_the_activation() -> None:
    case, run = run_of("headless")
    activation, parts = case.model.features(case.inputs).detach(), run.parts()
    mean = activation[1, :, 2:5, 1:4].mean((1, 2))
    assert_close(parts.descriptors[1, 3 * 5 + 2], mean / mean.norm())


class Doubled(torch.autograd.Function):
    """A function of the user whose gradient goes through numpy, so that it cannot be differentiated."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return torch.from_numpy(2 * gradients[0].detach().numpy())


class OwnFunction(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        # One path has a gradient that can be differentiated; the other one has not.
        return torch.cat([x, Doubled.apply(x)], 1)  # type: ignore[no-untyped-call]


def test_both_ways_to_the_parts_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    """One derivative per position, where there are few positions, or one way back per feature."""
    for name in ("many features", "vit"):
        found = []
        for cost in (0, 1000):
            monkeypatch.setattr(embedding_parts, "_cost", lambda _, cost=cost: cost)
            found.append(run_of(name)[1].parts())
        assert_close(found[0].positions, found[1].positions, rtol=1e-10, atol=1e-14)
        assert_close(found[0].others, found[1].others, rtol=1e-10, atol=1e-14)


ATTENTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "by position": lambda x: attention(x, x, x, None, 0.0, False),
    "by name": lambda x: attention(query=x, key=x, value=2 * x, scale=0.3),
    "causal": lambda x: attention(x, x, x, is_causal=True),
    "with a mask": lambda x: attention(x, x, x, attn_mask=torch.eye(12).roll(1, 0).bool() | torch.eye(12).bool()),
    "with a bias": lambda x: attention(x, x, x, attn_mask=torch.linspace(-1, 1, 144, dtype=x.dtype).view(12, 12)),
    "other values": lambda x: attention(x, x, x[..., :3]),
}


class Attending(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.features, self.function = nn.Conv2d(3, 6, 2, 2), function

    def forward(self, x: Tensor) -> Tensor:
        heads = self.features(x).flatten(2).transpose(1, 2).unsqueeze(1)
        return self.function(heads).squeeze(1)[:, 3:8].mean(1)


@pytest.mark.parametrize("name", ATTENTIONS)
def test_attention_is_followed_both_ways(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Attending(ATTENTIONS[name]).double().eval()
    images = torch.randn(2, 3, 6, 8, dtype=torch.float64)
    found = []
    for cost in (0, 1000):
        monkeypatch.setattr(embedding_parts, "_cost", lambda _, cost=cost: cost)
        if cost == 0:
            monkeypatch.setattr(embedding_parts, "_by_features", None)
        found.append(LayerPairs(model, "features").run(images).parts())
        monkeypatch.undo()
    assert_close(found[0].positions, found[1].positions, rtol=1e-10, atol=1e-14)
    assert found[0].others["rest"].abs().max() < 1e-14


@pytest.mark.parametrize("cost", [0, 1000])
def test_a_function_of_the_user_is_followed(cost: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding_parts, "_cost", lambda _, cost=cost: cost)
    case = make_case("headless")
    case.model.head = OwnFunction()
    parts = LayerPairs(case.model, case.layer).run(case.inputs).parts()
    assert_close(parts.positions[:, :, 6:], 2 * parts.positions[:, :, :6])
    assert parts.others["rest"].abs().max() < 1e-14


def test_methods_that_need_a_run_of_their_own_are_refused() -> None:
    case, run = run_of("signed head")
    support = run.embedding
    with pytest.raises(ValueError, match="LayerFAM explains another model or layer than this run has recorded"):
        run.maps(LayerFAM(case.model, "features.0"), support)
    with pytest.raises(ValueError, match="LayerFAM explains another model"):
        run.maps(LayerFAM(make_case("headless").model, "features"), support)
    with pytest.raises(ValueError, match=r"LayerFAM needs a forward pass of its own \(head differs from this run\)"):
        run.maps(LayerFAM(case.model, case.layer, transform=case.model.head, weighting="contributions"), support)
    with pytest.raises(ValueError, match=r"own \(unit_norm differs"):
        run.maps(LayerFAM(case.model, case.layer, unit_norm=False), support)
    with pytest.raises(ValueError, match=r"own \(modules behind the layer differs"):
        run.maps(LayerSimilarityShapley(case.model, case.layer), support)
    with pytest.raises(ValueError, match="support is missing"):
        run.maps(LayerFAM(case.model, case.layer))


def test_anything_but_a_method_of_the_package_is_refused() -> None:
    case, run = run_of("signed head")
    for wrong in ("fam", LayerGradCam(case.model, case.model.features), LayerFAM):
        with pytest.raises(
            TypeError, match=f"attribution must be a method of this package, .*got {type(wrong).__name__}"
        ):
            run.maps(wrong, run.embedding)  # type: ignore[arg-type]


def test_a_run_of_weights_that_have_changed_asks_for_another_run() -> None:
    case, run = run_of("signed head")
    cam, support = LayerSimilarityCAM(case.model, case.layer), run.embedding[:1]
    run.maps(cam, support)
    with torch.no_grad():
        case.model.head.weight.mul_(2)
    for use in (lambda: run.maps(cam, support), run.parts):
        with pytest.raises(ValueError, match="run the images again if the weights of the model have changed"):
            use()
    again = LayerPairs(case.model, case.layer).run(case.inputs)
    assert_close(again.maps(cam, support).shares["rest"], torch.zeros(len(again), dtype=torch.float64))


def test_a_detached_run_has_no_further_maps() -> None:
    case, run = run_of("signed head")
    detached = run.detach()
    assert torch.equal(detached.embedding, run.embedding)
    with pytest.raises(ValueError, match="this run is detached and has no graph any more; run the images again"):
        detached.parts()
    with pytest.raises(ValueError, match="this run is detached"):
        detached.maps(LayerFAM(case.model, case.layer), run.embedding)
