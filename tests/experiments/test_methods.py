"""Methods by name, with foils and options, and scores of pairs."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import normalize

from captum_fam import LayerFAM, LayerSimilarityCAM, SimilarityToSupport, SupportSet
from captum_fam.attr.registry import METHODS
from captum_fam.experiments.table_methods import (
    DEFAULT_METHODS,
    Account,
    TableMethod,
    get_methods,
    list_table_methods,
    once_for_all_windows,
)
from captum_fam.experiments.two_part_model import Tail
from captum_fam.metrics import find_empty
from captum_fam.pooling import GAP
from captum_fam.support import WeightedSupport
from tests.experiments.runs import make_model


def test_names_carry_foil_and_options() -> None:
    plain, foil, options = get_methods(
        "fam, grad-cam-foil,fam[weighting=weights,normalization=maxabs]-foil", "runner-up"
    )
    assert (plain.base, plain.foil, dict(plain.options)) == ("fam", None, {})
    assert (foil.base, foil.foil) == ("grad-cam", "runner-up")
    assert dict(options.options) == {"normalization": "maxabs", "weighting": "weights"}


def test_a_runner_up_is_one_whatever_the_foil() -> None:
    foil, runner_up = get_methods("fam-foil,fam-runner-up", "others")
    assert (foil.foil, runner_up.foil) == ("others", "runner-up")


def test_fam_keeps_the_sign_of_a_foil() -> None:
    tail = make_model(head=True).tail
    support = SupportSet(torch.rand(4, 12, 5, 7), [0, 0, 1, 1])
    activation, target = torch.rand(3, 12, 5, 7), torch.tensor([0, 1, 1])
    made, expected = (
        method.maps(lambda foil: SimilarityToSupport(tail, support, foil=foil), tail, activation, target, (20, 28)).maps
        for method in get_methods("fam-foil,fam[normalization=none]-foil")
    )
    assert torch.equal(made, expected)
    assert made.min() < 0 < made.max()


@pytest.mark.parametrize("name", ["similarity-cam-foil", "grad-cam-foil", "shapley-runner-up", "correspondence-foil"])
@pytest.mark.filterwarnings("ignore:the map explains")
def test_maps_that_a_foil_leaves_nothing_of_are_counted_as_empty(name: str) -> None:
    tail = make_model(head=True).tail.eval()
    support = SupportSet(torch.rand(1, 12, 5, 7).expand(2, -1, -1, -1), [0, 1])
    (method,) = get_methods(name)
    maps, account, _ = method.maps(
        lambda foil: SimilarityToSupport(tail, support, foil=foil),
        tail,
        torch.rand(2, 12, 5, 7),
        torch.tensor([0, 1]),
        (20, 28),
    )
    assert find_empty(maps).all()
    assert account is None or not account.sums.any()


def test_a_gradient_of_an_identical_pair_is_counted_as_empty() -> None:
    tail = make_model(head=True).tail.eval()
    activation = torch.rand(2, 12, 5, 7)
    scores = SimilarityToSupport(tail, SupportSet(activation[:1]))
    (method,) = get_methods("grad-cam")
    maps, *_ = method.maps(lambda foil: scores, tail, activation, torch.tensor([0, 0]), (20, 28))
    assert find_empty(maps).tolist() == [True, False]


def test_numbers_in_options_are_numbers() -> None:
    (method,) = get_methods("center[sigma=0.2]")
    assert method.options["sigma"] == 0.2


def test_a_box_on_the_grid_of_the_activation_is_refused() -> None:
    with pytest.raises(ValueError, match=r"center\[box=0.6\].*use center-box"):
        get_methods("fam,center[box=0.6]")
    with pytest.raises(ValueError, match="center-box has no options"):
        get_methods("center-box[share=0.5]")


def test_a_method_that_is_named_twice_is_made_once() -> None:
    assert len(get_methods("fam,grad-cam,fam")) == 2


@pytest.mark.parametrize("name", ["grad-cam++", "fam-foil-foil", "fam[", "fam[normalization]", "FAM"])
def test_unknown_names_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="method"):
        get_methods(name)


# Attention is shown of transformers only.
_ANY_NETWORK = {name for name in list_table_methods() if name not in METHODS or not METHODS[name].needs_attention}


@pytest.mark.parametrize("name", sorted({*DEFAULT_METHODS, *_ANY_NETWORK}))
def test_every_method_gives_one_finite_map_a_query(name: str) -> None:
    model = make_model(head=True)
    activation = torch.rand(3, 12, 5, 7)
    support = SupportSet(torch.rand(4, 12, 5, 7), [0, 0, 1, 1])
    (method,) = get_methods(name)
    maps = method.maps(
        lambda foil: SimilarityToSupport(model.tail, support, foil=foil),
        model.tail,
        activation,
        torch.tensor([0, 1, 1]),
        (20, 28),
    ).maps
    assert maps.shape[:2] == (3, 1)
    assert maps.shape[2:] in ((5, 7), (20, 28))
    assert maps.isfinite().all()
    assert not maps.requires_grad


def test_a_foiled_map_of_the_exact_method_is_the_difference_of_two() -> None:
    model = make_model(head=True)
    activation = torch.rand(2, 12, 5, 7)
    support = SupportSet(torch.rand(3, 12, 5, 7), [0, 1, 2])
    target = torch.tensor([2, 0])

    def maps(name: str, classes: torch.Tensor) -> torch.Tensor:
        (method,) = get_methods(name)
        scores = lambda foil: SimilarityToSupport(model.tail, support, foil=foil)  # noqa: E731
        return method.maps(scores, model.tail, activation, classes, (20, 28)).maps

    others = [maps("similarity-cam", (target + step) % 3) for step in (1, 2)]
    expected = maps("similarity-cam", target) - (others[0] + others[1]) / 2
    torch.testing.assert_close(maps("similarity-cam-foil", target), expected, rtol=1e-4, atol=1e-6)


def test_paired_scores_explain_each_query_by_its_own_supports() -> None:
    model = make_model(head=True)
    activation = torch.rand(3, 12, 5, 7)
    embeddings = torch.randn(6, 6)
    weights = torch.tensor(
        [[0.5, 0.5, 0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0, 0.0, 0.0], [0.0, 0.2, 0.0, 0.3, 0.5, 0.0]]
    )
    scores = SimilarityToSupport(model.tail, WeightedSupport(embeddings, weights))
    with torch.no_grad():
        cosines = normalize(model.tail(activation)) @ normalize(embeddings).T
        torch.testing.assert_close(scores(activation), cosines @ weights.T)
    together = LayerFAM(scores, model.tail.activation).attribute(activation, target=torch.arange(3))
    for query, rows in ((0, [0, 1]), (1, [2])):
        own = LayerFAM(model.tail, model.tail.activation)
        alone = own.attribute(activation[query : query + 1], support=embeddings[rows])
        torch.testing.assert_close(together[query : query + 1], alone, rtol=1e-4, atol=1e-5)


def test_the_foil_of_paired_scores_is_subtracted_query_by_query() -> None:
    model = make_model(head=True)
    activation = torch.rand(2, 12, 5, 7)
    embeddings = torch.randn(4, 6)
    classes, foils = torch.eye(4)[:2], torch.eye(4)[2:]
    target = torch.arange(2)

    def cam(weights: torch.Tensor, foil: torch.Tensor | None = None) -> torch.Tensor:
        scores = SimilarityToSupport(model.tail, WeightedSupport(embeddings, weights, foil))
        return LayerSimilarityCAM(scores, model.tail.activation).attribute(activation, target=target)

    torch.testing.assert_close(cam(classes, foils), cam(classes) - cam(foils), rtol=1e-4, atol=1e-6)


def _rows(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64).view(1, 1, 1, -1)


def test_the_mean_over_layers_is_that_of_their_maps_on_the_finest_grid() -> None:
    # One channel: the cosine is 1, and a position's share of it is its share of the activation.
    tail = Tail(GAP(), rest=nn.AvgPool2d((1, 2))).eval()
    activation = torch.cat([_rows(1, 3, 2, 2), _rows(0, 0, 4, 4)])
    scores = SimilarityToSupport(tail, SupportSet(_rows(1, 1, 1, 1)))

    def maps(layers: str) -> torch.Tensor:
        (method,) = get_methods(f"similarity-cam[layers={layers}]")
        found = method.maps(lambda foil: scores, tail, activation, torch.tensor([0, 0]), (4, 8))
        assert found.account is not None
        torch.testing.assert_close(*found.account)
        return found.maps

    torch.testing.assert_close(maps("activation"), torch.cat([_rows(1, 3, 2, 2), _rows(0, 0, 4, 4)]) / 8)
    torch.testing.assert_close(maps("rest"), torch.cat([_rows(1, 1), _rows(0, 2)]) / 2)
    # On four positions (1/2, 1/2) is four quarters, and (0, 1) is (0, 1/8, 3/8, 1/2).
    expected = torch.cat([_rows(0.1875, 0.3125, 0.25, 0.25), _rows(0, 0.0625, 0.4375, 0.5)])
    torch.testing.assert_close(maps("activation + rest"), expected)


@pytest.mark.parametrize("foil", [None, "others", "runner-up"])
@pytest.mark.parametrize("layers", ["activation", "rest.1", "rest", "activation+rest.1+rest"])
def test_maps_of_any_layer_behind_the_cut_and_their_mean_cover_the_whole_score(foil: str | None, layers: str) -> None:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(9)
    for tensor in (norm.running_mean, norm.weight, norm.bias):
        nn.init.uniform_(tensor, 0.5, 2.0)
    rest = nn.Sequential(nn.Conv2d(5, 9, 3, 2), norm, nn.ReLU6(), nn.Conv2d(9, 7, 2), nn.Hardswish())
    tail = Tail(GAP(), nn.Linear(7, 6, bias=False), rest).double().eval()
    activation = torch.rand(3, 5, 11, 14, dtype=torch.float64)
    support = SupportSet(torch.rand(6, 5, 11, 14, dtype=torch.float64), [0, 0, 1, 1, 2, 2])
    target = torch.tensor([1, 0, 2])
    suffix = {None: "", "others": "-foil", "runner-up": "-runner-up"}[foil]
    (method,) = get_methods(f"similarity-cam[layers={layers}]{suffix}")
    scores = SimilarityToSupport(tail, support, foil=foil)  # type: ignore[arg-type]
    maps, account, _ = method.maps(lambda foil: scores, tail, activation, target, (22, 28))
    assert maps.shape == (3, 1, *{"rest.1": (5, 6), "rest": (4, 5)}.get(layers, (11, 14)))
    with torch.no_grad():
        torch.testing.assert_close(maps.sum((1, 2, 3)), scores(activation).gather(1, target[:, None])[:, 0])
    assert account is not None
    torch.testing.assert_close(*account)


@pytest.mark.parametrize("name", ["fam", "grad-cam-foil", "mean-activation", "correspondence", "eigen-cam"])
def test_any_method_explains_a_layer_behind_the_cut(name: str) -> None:
    rest = nn.Sequential(nn.Conv2d(4, 6, 3, 2), nn.ReLU())
    tail, shorter = Tail(GAP(), rest=rest).eval(), Tail(GAP()).eval()
    activation, images, labels = torch.rand(2, 4, 9, 13), torch.rand(4, 4, 9, 13), [0, 0, 1, 1]
    target = torch.tensor([1, 0])
    base, suffix, _ = name.partition("-foil")
    (method,), (plain,) = get_methods(f"{base}[layers=rest]{suffix}"), get_methods(f"{base}{suffix}")
    with torch.no_grad():
        behind, supports = rest(activation), rest(images)
    whole = SimilarityToSupport(tail, SupportSet(images, labels), foil=method.foil)
    part = SimilarityToSupport(shorter, SupportSet(supports, labels), foil=method.foil)
    made = method.maps(lambda foil: whole, tail, activation, target, (36, 52)).maps
    expected = plain.maps(lambda foil: part, shorter, behind, target, (36, 52)).maps
    torch.testing.assert_close(made, expected, rtol=1e-4, atol=1e-5)


def test_a_layer_that_the_tail_does_not_have_is_refused_with_those_that_it_has() -> None:
    tail = Tail(GAP(), rest=nn.Sequential(nn.Sequential(nn.ReLU())))
    (method,) = get_methods("similarity-cam[layers=features.5+rest]")
    with pytest.raises(ValueError, match=r"features\.5 is no layer behind.*activation, rest, rest\.0, rest\.0\.0\."):
        method.modules(tail)
    with pytest.raises(ValueError, match=r"there are activation\. .*--layer"):
        method.modules(Tail(GAP()))


def test_the_end_of_a_name_says_the_foil() -> None:
    names = "fam,fam-foil,fam-runner-up,fam-gallery,similarity-cam[layers=rest]-gallery"
    assert [method.foil for method in get_methods(names)] == [None, "others", "runner-up", "gallery", "gallery"]
    assert [method.foil for method in get_methods("fam-foil", "runner-up")] == ["runner-up"]


def test_only_maps_that_add_up_to_one_score_have_a_mean() -> None:
    with pytest.raises(ValueError, match=r"grad-cam\[.*similarity-cam"):
        get_methods("grad-cam[layers=activation+rest]-foil")


def test_a_name_says_the_window_of_the_filter_beside_options_and_layers() -> None:
    names = (
        "fam[smooth=5]-foil,correspondence[window=3,smooth=5]-runner-up,similarity-cam[layers=rest+rest.0,smooth=3],fam"
    )
    first, second, third, plain = get_methods(names)
    assert (first.name, first.smooth, first.foil) == ("fam[smooth=5]-foil", 5, "others")
    assert (second.smooth, dict(second.options)) == (5, {"window": 3})
    assert (third.smooth, third.layers) == (3, ("rest", "rest.0"))
    assert plain.smooth == 1


@pytest.mark.parametrize("window", ["0", "4", "-3", "2.5", "wide"])
def test_a_window_without_a_middle_is_refused(window: str) -> None:
    with pytest.raises(ValueError, match=rf"fam\[smooth={window}\].*odd whole number of at least 1, got '?{window}"):
        get_methods(f"fam[smooth={window}]")


@pytest.mark.parametrize("name", ["uniform", "center-box"])
def test_a_drawn_baseline_has_no_filter(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} has no options"):
        get_methods(f"{name}[smooth=3]")


def _spread_by_hand(map_: torch.Tensor, reach: int) -> torch.Tensor:
    """Every position gives an equal share of its value to each position of its window that the map has."""
    height, width = map_.shape
    result = torch.zeros_like(map_)
    for row in range(height):
        for column in range(width):
            rows = range(max(row - reach, 0), min(row + reach, height - 1) + 1)
            columns = range(max(column - reach, 0), min(column + reach, width - 1) + 1)
            for r in rows:
                for c in columns:
                    result[r, c] += map_[row, column] / (len(rows) * len(columns))
    return result


@pytest.mark.parametrize(
    "name",
    ["similarity-cam{}-foil", "fam{}", "grad-cam{}-runner-up", "correspondence{}", "mean-activation{}"],
)
@pytest.mark.parametrize("layers", ["", "layers=rest,"])
def test_a_filtered_map_is_the_map_with_every_position_spread_over_its_window(name: str, layers: str) -> None:
    tail = Tail(GAP(), nn.Linear(6, 4, bias=False), nn.Sequential(nn.Conv2d(5, 6, 3), nn.ReLU())).double().eval()
    activation = torch.rand(2, 5, 7, 9, dtype=torch.float64)
    support = SupportSet(torch.rand(4, 5, 7, 9, dtype=torch.float64), [0, 0, 1, 1])

    def made(options: str) -> tuple[torch.Tensor, Account | None]:
        (method,) = get_methods(name.format(f"[{layers}{options}]"))
        scores = SimilarityToSupport(tail, support, foil=method.foil)
        return method.maps(lambda foil: scores, tail, activation, torch.tensor([1, 0]), (14, 18))[:2]

    (plain, account), (filtered, filtered_account) = made("smooth=1"), made("smooth=5")
    expected = torch.stack([_spread_by_hand(map_[0], 2)[None] for map_ in plain])
    torch.testing.assert_close(filtered, expected)
    torch.testing.assert_close(filtered.sum((2, 3)), plain.sum((2, 3)))
    assert (account is None) == (filtered_account is None)
    assert account is None or all(map(torch.equal, account, filtered_account))


def test_the_mean_of_several_layers_is_filtered_as_one_map() -> None:
    tail = Tail(GAP(), rest=nn.AvgPool2d((1, 2))).eval()
    activation = torch.cat([_rows(1, 3, 2, 2), _rows(0, 0, 4, 4)])
    scores = SimilarityToSupport(tail, SupportSet(_rows(1, 1, 1, 1)))
    (method,) = get_methods("similarity-cam[layers=activation+rest,smooth=3]")
    found = method.maps(lambda foil: scores, tail, activation, torch.tensor([0, 0]), (4, 8))
    # The means, (3, 5, 4, 4) / 16 and (0, 1, 7, 8) / 16, with halves at the ends and thirds between.
    expected = [[3 / 2 + 5 / 3, 3 / 2 + 5 / 3 + 4 / 3, 5 / 3 + 4 / 3 + 4 / 2, 4 / 3 + 4 / 2]]
    expected += [[1 / 3, 1 / 3 + 7 / 3, 1 / 3 + 7 / 3 + 8 / 2, 7 / 3 + 8 / 2]]
    torch.testing.assert_close(found.maps.flatten(1), torch.tensor(expected, dtype=torch.float64) / 16)
    assert found.account is not None
    torch.testing.assert_close(*found.account)


def test_methods_that_differ_in_the_window_are_computed_once() -> None:
    asked: list[TableMethod] = []
    compute = once_for_all_windows(lambda method: asked.append(method) or len(asked))
    names = "fam[smooth=3]-foil,fam[smooth=5]-foil,fam-foil,fam[smooth=5],fam[normalization=none,smooth=3],fam,"
    names += "fam[smooth=1]"
    assert [compute(method) for method in get_methods(names)] == [1, 1, 1, 2, 3, 2, 2]
    assert [method.smooth for method in asked] == [1, 1, 1]
