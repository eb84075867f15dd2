"""``smooth=``: every map through a mean filter on the grid of its layer, and everything else as it was."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from captum_fam import BatchExplainer, Explainer, Explanation, SupportSet, explain, explain_pairs
from captum_fam.explanation import compare_figure
from captum_fam.explanation.pairs.pair import Pair

pytestmark = pytest.mark.filterwarnings(
    "ignore:the map", "ignore:more than half of a map", "ignore:no foil", "ignore:1 of 3 queries", "ignore:layer 'head'"
)

METHODS = ["similarity-cam", "fam", "grad-cam", "shapley", "correspondence", "uniform"]
ACCOUNTS = ("coverage", "convergence_delta", "scores", "plain_scores", "contributions", "predicted")


def spread(maps: Tensor, window: int) -> Tensor:
    """Every value of maps ``(B, N, *spatial)`` carried to the positions around it, one by one."""
    array, reach = maps.numpy(), window // 2
    out = np.zeros_like(array)
    for image, channel, *place in np.ndindex(array.shape):
        around = (image, channel, *(slice(max(at - reach, 0), at + reach + 1) for at in place))
        out[around] += array[(image, channel, *place)] / out[around].size
    return torch.from_numpy(out)


def spread_one(map_: Tensor, window: int) -> Tensor:
    return spread(map_[None, None], window)[0, 0]


@pytest.mark.parametrize("window", [3, 5])
def test_every_method_is_smoothed_before_it_is_brought_to_the_size_of_the_image(
    window: int, model: nn.Module, support: SupportSet, many_queries: Tensor
) -> None:
    options: dict[str, Any] = {"layer": "features", "method": METHODS, "foil": "others", "batch_size": 2}
    plain = explain(model, many_queries, support, **options)
    smooth = explain(model, many_queries, support, **options, smooth=window)
    for one, other in zip((plain, *plain.beside), (smooth, *smooth.beside), strict=True):
        torch.testing.assert_close(other.attributions, spread(one.attributions, window), rtol=1e-9, atol=1e-12)
        resized = nn.functional.interpolate(other.attributions, many_queries.shape[2:], mode="bilinear")
        torch.testing.assert_close(other.maps, resized)
        torch.testing.assert_close(
            other.attributions.sum((1, 2, 3)), one.attributions.sum((1, 2, 3)), rtol=1e-12, atol=1e-12
        )
        for name in ACCOUNTS:
            torch.testing.assert_close(getattr(other, name), getattr(one, name))
        assert [one.account_text(index) for index in range(5)] == [other.account_text(index) for index in range(5)]
        assert (one.smooth, other.smooth) == (1, window)
    assert smooth.shares is not None
    torch.testing.assert_close(smooth.attributions.sum((1, 2, 3)), smooth.shares["map"], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rank", [1, 3])
def test_signals_and_volumes_are_smoothed_along_all_axes(
    rank: int, make_net: Callable[..., nn.Module], make_images: Callable[..., Tensor]
) -> None:
    net, queries, support = make_net(rank=rank, signed=True), make_images(2, rank), make_images(3, rank, seed=1)
    plain, smooth = (explain(net, queries, support, layer="features", smooth=window) for window in (1, 3))
    torch.testing.assert_close(smooth.attributions, spread(plain.attributions, 3), rtol=1e-9, atol=1e-12)
    assert compare_figure([smooth]).get_suptitle().endswith(f"smoothed {' x '.join('3' * rank)} cells")


def test_the_mean_of_layers_is_smoothed_as_one_map(support: SupportSet, many_queries: Tensor) -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 5, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1)
    )
    net = nn.Sequential(net, nn.Flatten()).double().eval()
    plain, smooth = (
        explain(net, many_queries, support, layer=["0.1", "0.3"], method="similarity-cam", smooth=window)
        for window in (1, 3)
    )
    torch.testing.assert_close(smooth.attributions, spread(plain.attributions, 3), rtol=1e-9, atol=1e-12)


def both_sides(pair: Pair) -> dict[str, Tensor]:
    names = ("query_map", "support_map", "plain_query_map", "plain_support_map")
    return {name: getattr(pair, name) for name in names}


@pytest.mark.parametrize("method", [["similarity-cam", "fam"], "correspondence"])
def test_both_sides_of_pairs_are_smoothed_and_their_matches_are_not(
    method: Any, model: nn.Module, support: SupportSet, make_images: Callable[..., Tensor], many_queries: Tensor
) -> None:
    foil = None if method == "correspondence" else "others"
    options: dict[str, Any] = {"layer": "features", "method": method}
    calls = [
        lambda window: explain(
            model, many_queries[:3], support, **options, foil=foil, sides="both", top=2, smooth=window
        ),
        lambda window: explain_pairs(
            model, many_queries, make_images(5, seed=7), **options, foil=foil and make_images(4, seed=8), smooth=window
        ),
    ]
    for call in calls:
        plain, smooth = call(1), call(3)
        for one, other in zip((plain, *plain.beside), (smooth, *smooth.beside), strict=True):
            assert one.pairs is not None
            assert other.pairs is not None
            assert (one.smooth, other.smooth) == (1, 3)
            torch.testing.assert_close(other.attributions, spread(one.attributions, 3), rtol=1e-9, atol=1e-12)
            for of_query, smoothed in zip(one.pairs, other.pairs, strict=True):
                for pair, expected in zip(smoothed, of_query, strict=True):
                    for name, map_ in both_sides(expected).items():
                        torch.testing.assert_close(
                            getattr(pair, name), spread_one(map_, 3), rtol=1e-9, atol=1e-12, msg=name
                        )
                    assert (pair.query_coverage, pair.support_shares) == (
                        expected.query_coverage,
                        expected.support_shares,
                    )
                    assert pair.matches == expected.matches
                    if pair.decomposition is not None and expected.decomposition is not None:
                        assert torch.equal(pair.decomposition.matrix(), expected.decomposition.matrix())


def test_a_map_that_was_rounding_noise_stays_zero(
    make_net: Callable[..., nn.Module], make_images: Callable[..., Tensor]
) -> None:
    net, images = make_net(head="linear-bias", signed=True).float(), make_images(3).float()
    why = explain(net, images, images[:1], layer="features", method="grad-cam", smooth=5)
    assert not why.attributions[0].any()
    assert why.flat.tolist() == [True, False, False]


def test_what_is_smoothed_is_said_saved_and_read_again(
    model: nn.Module, support: SupportSet, many_queries: Tensor, tmp_path: Path
) -> None:
    plain = explain(model, many_queries, support, layer="features", foil="others")
    why = Explainer(model, support, layer="features", foil="others", smooth=np.int64(5)).explain(many_queries)
    assert repr(why) == "Explanation(5 queries, similarity-cam, beside: fam, layer 'features', foil others, smooth 5)"
    assert "smooth" not in repr(plain)
    assert why[1].smooth == why.beside[0][:2].smooth == 5
    why.save(tmp_path / "why")
    manifest = json.loads((tmp_path / "why" / "manifest.json").read_text())
    assert manifest["smooth"] == 5
    again = Explanation.load(tmp_path / "why")
    assert again.smooth == again.beside[0].smooth == 5
    torch.testing.assert_close(again.attributions, why.attributions)
    for one in (why, again):
        assert one.figure(0).get_suptitle().endswith(", layer features, similarity: cosine, smoothed 5 x 5 cells")
    assert "smoothed" not in plain.figure(0).get_suptitle()
    titles = [axes.get_title() for axes in compare_figure([plain, why]).axes]
    assert sum("smoothed 5 x 5 cells" in title for title in titles) == 1
    for one, is_said in ((why, True), (plain, False)):
        one.to_html(tmp_path / "why.html")
        assert ("smoothed 5 x 5 cells" in (tmp_path / "why.html").read_text("utf-8")) is is_said


def test_a_table_has_the_window_in_a_column(model: nn.Module, support: SupportSet, many_queries: Tensor) -> None:
    pytest.importorskip("pandas")
    frame = explain(model, many_queries, support, layer="features", smooth=3).to_dataframe()
    assert frame["smooth"].tolist() == [3] * 5


def test_a_pipeline_gives_smoothed_maps(model: nn.Module, support: SupportSet, many_queries: Tensor) -> None:
    columns = BatchExplainer(model, support, layer="features", smooth=3)({"image": many_queries.numpy()})
    expected = explain(model, many_queries, support, layer="features", smooth=3).attributions[:, 0].float()
    np.testing.assert_allclose(columns["map"], expected.numpy(), rtol=1e-6)


@pytest.mark.parametrize("window", [0, 2, -1, 3.0, "5", True, None])
def test_a_window_that_is_none_is_one_clear_error(
    window: Any, model: nn.Module, support: SupportSet, many_queries: Tensor
) -> None:
    for call in (
        lambda: explain(model, many_queries, support, smooth=window),
        lambda: explain_pairs(model, many_queries, many_queries, smooth=window),
        lambda: Explainer(model, support, smooth=window),
    ):
        with pytest.raises(ValueError, match=f"smooth must be an odd whole number of at least 1, got {window!r}"):
            call()
