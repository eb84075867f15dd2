"""What figures say and show of explanations, which are made here by hand."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes

from captum_fam.attr.pair_decomposition import PointMatch
from captum_fam.explanation import Explanation, compare_figure
from captum_fam.explanation.figure import pair_figure
from captum_fam.explanation.figure_words import contrast_in_words, similarity_in_words, unit_in_words
from captum_fam.explanation.pairs.pair import Pair
from captum_fam.visualization import MapFigure, MapStyle

IMAGES = torch.rand(2, 3, 12, 20, generator=torch.Generator().manual_seed(0))


def explained(method: str = "similarity-cam", scale: float = 1.0, **about: object) -> Explanation:
    """The explanation of two queries of the classes wren and jay, whose map has the largest value ``2 * scale``."""
    attributions = scale * torch.tensor([[0.5, -1.0, 2.0]]).expand(2, 1, 2, 3)
    adds_up = method == "similarity-cam"
    contrasted = about.get("foil") is not None or about.get("against") is not None
    scores = torch.tensor([[0.7, 0.4], [0.6, 0.65]]) - (0.5 if contrasted else 0)
    return Explanation(
        method=method,
        maps=attributions,
        attributions=attributions,
        scores=scores,
        predicted=torch.tensor([0, 1]),
        target=torch.tensor([0, 0]),
        plain_scores=torch.tensor([0.7, 0.6]),
        class_names=("wren", "jay"),
        names=("a", "b"),
        images=IMAGES,
        coverage=torch.tensor([0.9, 1.0]) if adds_up else None,
        shares={"map": torch.tensor([0.9, 1.0]), "bias": torch.tensor([0.1, 0.0])} if adds_up else None,
        support_blind=method in ("random", "uniform"),
        about={"model": "a network", "layer": "4", "similarity": "Cosine()", **about},
    )


def panels(figure: MapFigure) -> dict[str, Axes]:
    """The panels by title."""
    return {ax.get_title(): ax for ax in figure.axes if ax.get_title()}


def limit(ax: Axes) -> float:
    """The magnitude that has the full color."""
    return float(ax.images[1].get_clim()[1])


def bar_of(ax: Axes) -> str:
    """What stands at the color bar, below or beside the panel."""
    (bar,) = ax.child_axes
    return str(bar.get_xlabel() or bar.get_ylabel())


def pair(name: str = "one.png", scale: float = 1.0, **changes: Any) -> Pair:
    """A pair of the first query, whose two maps have the largest values ``3 * scale`` and ``5 * scale``."""
    matches = (PointMatch((1, 2), (0, 1), 0.3, 0.9, True), PointMatch((1, 1), (0, 1), 0.1, 0.8, False))
    query_map, support_map = scale * torch.tensor([[0.0, 0, 1], [0, 0, 3]]), scale * torch.tensor([[0.0, 5], [1, 0]])
    fields: dict[str, Any] = {
        "row": 0,
        "name": name,
        "label": "wren",
        "similarity": 0.75,
        "weight": 0.5,
        "image": torch.rand(3, 8, 16),
        "score": 0.25,
        "support_score": 0.2,
        "query_map": query_map,
        "support_map": support_map,
        "plain_query_map": query_map,
        "plain_support_map": support_map,
        "query_coverage": 1.0,
        "support_coverage": 0.8,
        "query_shares": {"map": 0.25, "rest": 0.0},
        "support_shares": {"map": 0.16, "bias": 0.04, "rest": 0.0},
        "matches": matches,
        "mutual_matches": matches[:1],
    }
    return Pair(**{**fields, **changes})


def test_a_figure_states_model_layer_similarity_score_and_account() -> None:
    figure = compare_figure([explained(), explained("fam")], 1, IMAGES)
    assert figure.get_suptitle() == "a network, layer 4, similarity: cosine"
    assert list(panels(figure)) == [
        "query b\npredicted: jay",
        "support\nwren",
        "similarity-cam\nscore 0.600\nexplains 100 % of the score",
        "fam\nscore 0.600\nno account of the score",
    ]
    _, _, cam, fam = panels(figure).values()
    assert [bar_of(ax) for ax in (cam, fam)] == ["share of the cosine", "activation"]


def test_with_and_without_a_foil_one_method_has_one_scale_and_other_units_have_their_own() -> None:
    figure = compare_figure([explained(), explained(scale=0.25, foil="others"), explained("fam", 9.0, foil="others")])
    _, plain, foiled, fam = panels(figure).values()
    assert [limit(ax) for ax in (plain, foiled, fam)] == pytest.approx([2, 2, 18])
    assert list(panels(figure))[2] == (
        "similarity-cam\nfoil: others\nscore 0.200 (plain score 0.700)\nexplains 90 % of the score; bias 10 %"
    )


@pytest.mark.parametrize(
    ("about", "line"),
    [
        ({"against": "threshold", "threshold": 0.5}, "against threshold 0.5"),
        ({"against": "identity"}, "against identity"),
        ({"foil": "gallery"}, "foil: gallery"),
    ],
)
def test_the_title_of_a_map_names_its_contrast(about: dict[str, object], line: str) -> None:
    why = explained(**about)
    assert contrast_in_words(why) == line
    assert list(panels(compare_figure([why])))[1].splitlines()[:3] == [
        "similarity-cam",
        line,
        "score 0.200 (plain score 0.700)",
    ]


def test_a_baseline_carries_neither_score_nor_foil() -> None:
    foiled = {"foil": "others"}
    figure = compare_figure([explained(**foiled), explained("random", 7.0, **foiled)], foils=IMAGES)
    assert [title.splitlines()[0] for title in panels(figure)] == [
        "query a",
        "foil: others",
        "similarity-cam",
        "random",
    ]
    (random,) = [title for title in panels(figure) if "random" in title]
    assert random == "random\nno account of the score"
    assert limit(panels(figure)[random]) == pytest.approx(14)
    assert bar_of(panels(figure)[random]) == "random, without a unit"
    # Where no map depends on the foil, the foil is not shown at all.
    alone = compare_figure([explained("random", **foiled), explained("uniform", **foiled)], foils=IMAGES)
    assert [title.splitlines()[0] for title in panels(alone)] == ["query a", "random", "uniform"]
    assert alone.get_suptitle() == "a network, layer 4"


def test_layers_that_differ_stand_above_their_maps() -> None:
    figure = compare_figure([explained(), explained(layer="3")])
    assert figure.get_suptitle() == "a network, similarity: cosine"
    assert [title.splitlines()[:2] for title in panels(figure)][1:] == [
        ["similarity-cam", "layer 4"],
        ["similarity-cam", "layer 3"],
    ]


def test_maps_of_equal_titles_are_all_drawn() -> None:
    titles = list(panels(compare_figure([explained(), explained(scale=2.0), explained(scale=3.0)])))
    assert [title.splitlines()[0] for title in titles[1:]] == [
        "similarity-cam",
        "similarity-cam (2)",
        "similarity-cam (3)",
    ]


@pytest.mark.parametrize(
    ("method", "similarity", "unit"),
    [
        ("similarity-cam", "Cosine()", "share of the cosine"),
        ("similarity-cam", "Euclidean(squared=True)", "share of the negative squared Euclidean distance"),
        ("similarity-cam", "UnitEuclidean(squared=False)", "share of the negative Euclidean distance of unit vectors"),
        ("similarity-cam", "Overlap()", "share of the similarity Overlap()"),
        ("grad-cam", "Dot()", "grad-cam of the dot product"),
        ("a_method_of_my_own", "Cosine()", "a_method_of_my_own of the cosine"),
        ("correspondence", "Cosine()", "cosine of two positions"),
        ("fam", "Cosine()", "activation"),
        ("uniform", "Cosine()", "uniform, without a unit"),
    ],
)
def test_the_unit_of_a_map_follows_from_method_and_similarity(method: str, similarity: str, unit: str) -> None:
    assert unit_in_words(explained(method, similarity=similarity)) == unit


def test_an_explanation_that_does_not_know_its_similarity_says_similarity() -> None:
    assert similarity_in_words(replace(explained(), about={})) == "similarity"
    assert compare_figure([replace(explained(), about={})]).get_suptitle() == ""


def test_the_caption_names_a_similarity_of_the_users_own() -> None:
    assert compare_figure([explained(similarity="Overlap()")]).get_suptitle().endswith(", similarity: Overlap()")


def test_outlines_and_gray_images_on_request() -> None:
    (_, ax) = panels(compare_figure([explained()], style="outline")).values()
    assert ax.collections
    (_, ax) = panels(compare_figure([explained()], style=MapStyle(gray=True))).values()
    np.testing.assert_allclose(ax.images[0].get_array(), IMAGES[0].mean(0).expand(3, -1, -1).movedim(0, 2))


def test_pairs_add_the_maps_of_the_first_three_supports_and_the_lines_of_the_first() -> None:
    pairs = tuple(pair(f"{number}.png", 1 / number) for number in range(1, 5))
    why = replace(explained(foil="others"), pairs=(pairs, pairs[:1]))
    axes = panels(compare_figure([why, explained("fam", foil="others")], 0))
    notes = "wren\nscore 0.200\nsimilarity 0.750\nexplains 80 % of the score; bias 20 %"
    assert list(axes)[3:] == [
        *(f"map of support {number}.png\n{notes}" for number in (1, 2, 3)),
        "query a, support 1.png\nwren\n1 mutual match, each the best of the other: 0.300 of the similarity 0.750",
    ]
    _, cam, fam, *supports, lines = axes.values()
    # The query's map is a share of the whole score, and the maps of supports are shares of one similarity each.
    assert [limit(ax) for ax in (cam, *supports)] == [2.0, 5.0, 5.0, 5.0]
    assert limit(fam) == 2.0
    assert bar_of(cam) == "share of the cosine"
    assert [bar_of(ax).replace("\n", " ") for ax in supports] == ["share of the cosine, scale of the supports"] * 3
    np.testing.assert_allclose(lines.images[0].get_array(), IMAGES[0].movedim(0, 2))
    np.testing.assert_allclose(lines.images[1].get_array(), pairs[0].image.movedim(0, 2))
    assert len(lines.lines) == 1
    (start, _) = lines.lines[0].get_xydata()
    assert start == pytest.approx([5 / 6 * 20 / 12, 0.75])


def test_the_pair_of_a_query_is_drawn_with_its_scores() -> None:
    why = replace(explained(against="threshold", threshold=0.5), pairs=((pair(), pair("two.png", label="two")), ()))
    figure = pair_figure(why, 0, 1)
    assert figure.get_suptitle() == "a network, layer 4, similarity: cosine"
    head = "similarity-cam\nagainst threshold 0.5\nmap of"
    assert list(panels(figure)) == [
        "query a, support two.png\n1 mutual match, each the best of the other: 0.300 of the similarity 0.750",
        f"{head} query a\nscore 0.250\nsimilarity 0.750\nexplains 100 % of the score",
        f"{head} support two.png\nscore 0.200\nsimilarity 0.750\nexplains 80 % of the score; bias 20 %",
    ]
    _, query, support = panels(figure).values()
    assert [limit(ax) for ax in (query, support)] == [5.0, 5.0]
    assert bar_of(support) == "share of the cosine"


def test_the_pair_is_asked_for_by_position_or_name() -> None:
    why = replace(explained(), pairs=((pair(),), (pair("two.png"),)))
    assert next(iter(panels(pair_figure(why, "b")))).startswith("query b, support two.png")
    with pytest.raises(KeyError, match="no query has the name 'c'"):
        pair_figure(why, "c")
    with pytest.raises(IndexError, match="support 1 is out of range for a query with 1 pairs"):
        pair_figure(why, 0, 1)


def test_a_pair_without_matches_is_two_images_and_two_maps() -> None:
    one = pair(
        matches=(),
        mutual_matches=(),
        query_coverage=None,
        support_coverage=None,
        query_shares=None,
        support_shares=None,
    )
    why = replace(explained("fam"), pairs=((one,), (one,)))
    assert list(panels(pair_figure(why))) == [
        "query a, support one.png\nwren",
        "fam\nmap of query a\nscore 0.250\nno account of the score",
        "fam\nmap of support one.png\nwren\nscore 0.200\nno account of the score",
    ]
    assert "query a, support one.png" not in "".join(panels(compare_figure([why])))


def test_lines_join_mutual_matches_with_a_positive_share() -> None:
    shares = {((0, 0), (1, 1)): 0.25, ((1, 1), (0, 0)): 0.15, ((0, 1), (0, 1)): 0.0, ((1, 0), (1, 0)): -0.1}
    mutual = tuple(PointMatch(*cells, share, 0.5, True) for cells, share in shares.items())
    (title, ax), *_ = panels(pair_figure(replace(explained(), pairs=((pair(mutual_matches=mutual),), ())))).items()
    assert title == (
        "query a, support one.png\nwren\n2 mutual matches, each the best of the other: 0.400 of the similarity 0.750"
    )
    assert len(ax.lines) == 2
    (title, ax), *_ = panels(pair_figure(replace(explained(), pairs=((pair(mutual_matches=mutual[2:]),), ())))).items()
    assert title == "query a, support one.png\nwren\nno mutual match to draw"
    assert not ax.lines


def test_the_matches_of_a_distance_are_shares_of_the_difference_from_an_embedding_of_zeros() -> None:
    decomposition = SimpleNamespace(query_shares={"map": 2.5, "zero embedding": -1.75, "rest": 0.0})
    why = replace(explained(), pairs=((pair(decomposition=decomposition),), ()))
    title = next(iter(panels(pair_figure(why))))
    assert title.endswith(": 0.300 of the difference of 2.50 from an embedding of zeros")
    # Saved pairs have no decomposition, and the parts of the contrasted score only.
    why = replace(explained(), pairs=((pair(query_shares={"map": 1.0, "zero embedding": 0.5}),), ()))
    assert next(iter(panels(pair_figure(why)))).endswith(": 0.300 of the difference from an embedding of zeros")


def test_the_two_images_of_a_pair_have_their_own_names() -> None:
    why = replace(explained(), names=("monday - one.png", "b"), pairs=((pair(),), ()))
    assert list(panels(pair_figure(why)))[1].splitlines()[1] == "map of query monday"
    assert next(iter(panels(compare_figure([why])))) == "query monday\npredicted: wren"


def test_pairs_of_signals_and_volumes_are_drawn() -> None:
    for shape, cell in (((2, 50), (1,)), ((1, 6, 8, 9), (1, 0, 0))):
        grid = (2,) * len(cell)
        one = pair(
            image=torch.rand(shape),
            query_map=torch.rand(grid),
            support_map=torch.rand(grid),
            mutual_matches=(PointMatch(cell, cell, 0.5, 0.5, True),),
        )
        attributions = torch.rand(2, 1, *grid)
        why = replace(explained(), images=torch.rand(2, *shape), attributions=attributions, pairs=((one,), (one,)))
        is_signal = len(cell) == 1
        assert ("query a, support one.png\nwren" in "".join(panels(compare_figure([why])))) is not is_signal
        assert len(panels(pair_figure(why))) == (4 if is_signal else 3)


def test_an_explanation_without_pairs_has_no_figure_of_a_pair() -> None:
    with pytest.raises(ValueError, match=r'explanation has no pairs; use explain\(..., sides="both"\)'):
        pair_figure(explained())
