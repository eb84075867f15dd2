"""Methods by name, and which of their maps are only noise."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from captum.attr import LayerActivation, LayerGradCam
from torch import Tensor, nn

from captum_fam import LayerFAM, SimilarityToSupport, SupportSet
from captum_fam.attr.registry import METHODS, get_method, list_methods, register_method
from captum_fam.similarity import EuclideanDifference, get_similarity


@pytest.fixture
def net(make_net: Callable[..., nn.Module]) -> nn.Module:
    return make_net()


def test_only_maps_in_the_unit_of_the_score_are_small_beside_it() -> None:
    maps = torch.tensor([1e-3, 0.1]).view(2, 1, 1, 1).expand(2, 1, 3, 4)
    kept = {
        "similarity-cam": [False, True],
        "grad-cam": [False, True],
        "correspondence": [True, True],
        "fam": [True, True],
    }
    for name, expected in {**kept, "uniform": [True, True]}.items():
        found = get_method(name).without_noise(maps, lambda: torch.full((2,), 1e4))
        assert [bool(one.all()) for one in found] == expected
        assert [bool(one.any()) for one in found] == expected


def test_a_correspondence_of_noise_is_noise_whatever_the_score() -> None:
    maps = torch.full((1, 1, 2, 2), 1e-7)
    assert not get_method("correspondence").without_noise(maps, lambda: torch.full((1,), 1e-9)).any()


@pytest.fixture
def names() -> Iterator[None]:
    """Takes back what a test registers."""
    before = dict(METHODS)
    yield
    METHODS.clear()
    METHODS.update(before)


def test_name_and_class_are_the_same_method() -> None:
    assert get_method("fam") is get_method(LayerFAM) is get_method(get_method("fam"))
    assert get_method(LayerGradCam).name == "grad-cam"


def test_a_registered_method_is_found_by_name_and_class(names: None) -> None:
    class Mine(LayerFAM):
        """Another one."""

    register_method("mine_2+", Mine, signed=False)
    found = get_method("mine_2+")
    assert found is get_method(Mine)
    assert (found.name, found.make, found.signed, found.takes_foil) == ("mine_2+", Mine, False, True)
    assert "mine_2+" in list_methods()


def test_a_class_that_is_not_registered_goes_by_its_own_name() -> None:
    class Mine(LayerFAM):
        """Another one."""

    assert (get_method(Mine).name, get_method(Mine).signed) == ("Mine", True)
    assert get_method(LayerActivation).name == "LayerActivation"


@pytest.mark.parametrize(("name", "message"), [("fam", "'fam' is taken"), ("a b", "'a b'"), (3, "got 3")])
def test_a_name_that_is_taken_or_no_name_is_refused(name: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        register_method(name, LayerActivation)


@pytest.mark.parametrize(
    ("make", "options", "error", "message"),
    [
        (5, {}, TypeError, r"make must be .*got int"),
        ("fam", {}, TypeError, r"make must be .*got str"),
        (LayerFAM, {"unit": "meters"}, ValueError, r"unit must be one of .*'meters'"),
    ],
)
def test_what_makes_no_method_is_refused(make: Any, options: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        register_method("mine", make, **options)
    for name in ("mine-foil", "mine-runner-up", "mine-gallery"):
        with pytest.raises(ValueError, match=f"'{name}' ends"):
            register_method(name, LayerFAM)
    assert "mine" not in list_methods()


@pytest.mark.parametrize(("method", "error"), [("no-such", ValueError), (3, TypeError)])
def test_what_is_no_method_is_refused(method: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=f"method must be .*{'no-such' if method == 'no-such' else 'int'}"):
        get_method(method)


@pytest.mark.parametrize("foil", [None, "others", "runner-up", "support"])
def test_the_magnitude_of_scores_is_that_before_the_foil(
    foil: Any, net: nn.Module, queries: Tensor, supports: Tensor, make_images: Callable[..., Tensor]
) -> None:
    foil = SupportSet(make_images(4, seed=7)) if foil == "support" else foil
    scores = SimilarityToSupport(net, SupportSet(supports, [0, 1, 1]), foil=foil)
    cosines = nn.functional.cosine_similarity(net(queries)[:, None], net(supports)[None], dim=2)
    expected = torch.stack([cosines[:, 0].abs(), cosines[:, 1:3].abs().mean(1)], 1).amax(1)
    torch.testing.assert_close(scores.compare(queries).magnitude, expected)


@pytest.mark.parametrize("similarity", ["euclidean", "squared-euclidean", EuclideanDifference()])
def test_the_magnitude_of_a_distance_has_a_part_that_does_not_shrink_with_it(
    similarity: Any, net: nn.Module, supports: Tensor
) -> None:
    support = SupportSet(net(supports[:1]).detach())
    length = net(supports[:1]).norm().detach()
    expected = length**2 if similarity == "squared-euclidean" else length
    near = support.compare(net(supports[:1]).detach() * (1 + 1e-9), similarity=get_similarity(similarity))
    torch.testing.assert_close(near.magnitude, expected.view(1))
    far = support.compare(net(supports[:1]).detach() * 1e3, similarity=get_similarity(similarity))
    torch.testing.assert_close(far.magnitude, -far.similarities[:, 0])
