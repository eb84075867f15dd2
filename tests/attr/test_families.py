"""The account of the score is complete in model families of every package, with all of their constants random."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from benchmarks.families import BIAS, FAMILIES, Place, random_images, randomize
from captum_fam import LayerSimilarityCAM

# A few of benchmarks.coverage: windows, registers, a class token in the middle, an attention as pooling, the heads.
NAMES = (
    "heads/arcface",
    "heads/gem_l2_linear_l2",
    "heads/osnet",
    "heads/pcb_l2",
    "torchvision/maxvit",
    "torchvision/vit",
    "timm/convnextv2_atto",
    "timm/hiera_tiny",
    "timm/vit_small_patch14_reg4_dinov2",
    "timm/xcit_nano",
    "transformers/swin",
    "open_clip/vit_pooled",
)

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # where the map explains little


@functools.cache
def explained(name: str) -> tuple[Tensor, list[tuple[Place, Tensor, dict[str, Tensor]]]]:
    """The mean cosine of two queries and three supports; place, coverage and shares at the last and the early layer."""
    family = FAMILIES[name]
    package = name.partition("/")[0]
    if package != "heads":
        pytest.importorskip(package)
    model = randomize(family.build()).double()
    queries, supports = random_images(5, family.size, seed=0).double().split([2, 3])
    with torch.no_grad():
        embeddings = model(supports)
        score = cosine_similarity(model(queries).unsqueeze(1), embeddings, dim=2).mean(1)
    accounts = []
    for place in (family.last, family.early):
        details = LayerSimilarityCAM(model, place.layer, token_grid=place.grid).details(queries, support=embeddings)
        assert isinstance(details.coverage, Tensor)
        assert isinstance(details.shares, dict)
        maps = details.attributions
        assert isinstance(maps, Tensor)
        assert torch.allclose(maps.flatten(1).sum(1), details.shares["map"], rtol=1e-10)
        accounts.append((place, details.coverage, details.shares))
    return score, accounts


@pytest.mark.parametrize("name", NAMES)
def test_every_part_of_the_score_has_a_name(name: str) -> None:
    score, accounts = explained(name)
    for _, _, shares in accounts:
        largest = torch.stack([score, *shares.values()]).abs().amax(0)
        assert ((sum(shares.values()) - score).abs() <= 1e-10 * largest).all()
        assert (shares["rest"].abs() <= 1e-9 * largest).all()


@pytest.mark.parametrize("name", NAMES)
def test_nothing_but_the_parts_that_the_family_has_lies_beside_the_map(name: str) -> None:
    for place, _, shares in explained(name)[1]:
        assert set(shares) <= {"map", "rest", *place.beside}


@pytest.mark.parametrize("name", NAMES)
def test_coverage_is_one_where_nothing_lies_beside_the_map(name: str) -> None:
    score, accounts = explained(name)
    for place, coverage, shares in accounts:
        assert torch.allclose(coverage, shares["map"] / score, rtol=1e-8)
        if not place.beside:
            assert ((coverage - 1).abs() <= 0.01).all()


@pytest.mark.parametrize("name", NAMES)
def test_biases_between_an_early_and_the_last_layer_act_at_positions(name: str) -> None:
    _, ((last, coverage, late_shares), (early, _, early_shares)) = explained(name)
    assert last.beside == early.beside
    none = torch.zeros_like(coverage)
    assert torch.allclose(late_shares.get(BIAS, none), early_shares.get(BIAS, none), atol=1e-8)


def test_a_random_model_has_no_weight_that_is_zero_and_is_the_same_for_the_same_seed() -> None:
    family = FAMILIES["heads/arcface"]
    first, again, other = (randomize(family.build(), seed) for seed in (0, 0, 1))
    assert all(bool((weight != 0).all()) for weight in first.parameters())
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), again.state_dict().values(), strict=True))
    x = random_images(1, family.size, seed=0)
    with torch.no_grad():
        assert not torch.allclose(first(x), other(x))


def test_there_are_families_of_every_package_and_images_that_are_not_square() -> None:
    assert len(FAMILIES) >= 40
    packages = {name.partition("/")[0] for name in FAMILIES}
    assert packages == {"heads", "timm", "torchvision", "transformers", "open_clip", "lightly", "facenet_pytorch"}
    assert sum(family.size[0] != family.size[1] for family in FAMILIES.values()) > len(FAMILIES) / 2
