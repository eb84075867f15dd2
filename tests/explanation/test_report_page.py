"""The rows of a report are the explanations."""

from __future__ import annotations

import gc
import json
import re
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from captum_fam import Explanation, SupportSet, explain
from captum_fam.explanation.pairs.one_call_for_pairs import explain_pairs
from captum_fam.explanation.report_page import write_report
from tests.explanation.names import NAMES
from tests.report.reading import numbers_of, rows_of, values_at

GRID = (7, 5)


def written(why: Explanation, path: Path, **options: Any) -> tuple[str, list[dict[str, Any]]]:
    """The text and the numbers of a report."""
    write_report([why], path, **options)
    return path.read_text("utf-8"), rows_of(path)


def close(integers: Any, place: dict[str, Any], expected: Tensor) -> None:
    """The values are those of a tensor, within half a step of 16 bits."""
    np.testing.assert_allclose(
        values_at(integers, place), expected.numpy(), rtol=0, atol=float(expected.abs().max()) / 65534 + 1e-15
    )


@pytest.fixture
def both_sides(model: nn.Module, support: SupportSet, many_queries: Tensor) -> Explanation:
    return explain(model, many_queries, support, layer="features", foil="others", sides="both", top=2)


def test_maps_and_matches_of_both_sides_are_those_of_the_pairs(both_sides: Explanation, tmp_path: Path) -> None:
    _, rows = written(both_sides, tmp_path / "r.html")
    methods = [both_sides, *both_sides.beside]
    assert len(rows) == 5
    for index, data in enumerate(rows):
        wide, narrow = numbers_of(data)
        for number, why in enumerate(methods):
            close(wide, data["query"][number][0], why.attributions[index, 0])
        assert both_sides.pairs is not None
        for place, found in enumerate(data["pairs"]):
            for number, why in enumerate(methods):
                assert why.pairs is not None
                pair = why.pairs[index][place]
                for side, values, plain in (
                    ("query", pair.query_map, pair.plain_query_map),
                    ("support", pair.support_map, pair.plain_support_map),
                ):
                    close(wide, found[side][number][0], values)
                    close(wide, found[side][number][1], plain)
            whole = both_sides.pairs[index][place].decomposition
            assert whole is not None
            matches = found["matches"]
            steps = values_at(wide, matches["steps"])[:, None]
            shares = whole.matrix().numpy()
            assert (abs(values_at(narrow, matches["matrix"]).T * steps - shares) <= steps / 2 + 1e-15).all()
            assert matches["score"] == pytest.approx(whole.score)
            best = whole.top_matches(1)[0]
            cell = best.query[0] * GRID[1] + best.query[1]
            assert values_at(wide, matches["best"][0]["cosines"])[cell] / 32767 == pytest.approx(best.cosine, abs=1e-4)


def test_scores_and_accounts_stand_under_each_pair(both_sides: Explanation, tmp_path: Path) -> None:
    text, _ = written(both_sides, tmp_path / "r.html")
    assert both_sides.pairs is not None
    pattern = (
        r'class="pair".*?score <b>(.*?)</b></p><p class="score contrast">less the other classes(?: <b>(.*?)</b>|:</p>'
        r'<p class="score contrast part">query <b>(.*?)</b></p><p class="score contrast part">support <b>(.*?)</b>)'
    )
    found = re.findall(pattern, text)
    assert len(found) == sum(map(len, both_sides.pairs))
    for numbers, pair in zip(found, [one for of_query in both_sides.pairs for one in of_query], strict=True):
        plain, both, query, support = (float(one.replace("\u2212", "-") or "nan") for one in numbers)
        assert plain == pytest.approx(pair.similarity, rel=5e-3)
        sides = (both, both) if query != query else (query, support)  # not NaN
        assert sides == pytest.approx((pair.score, pair.support_score), rel=5e-3)
    assert any(numbers[2] for numbers in found)
    assert "each image has its own similarity to the other classes" in text
    assert "each map: explains 100 % of the score less the other classes</p>" in text
    assert "each map: explains 100 % of the score</p>" in text, "the plain maps"
    assert "no account of the score" in text


def test_the_whole_map_without_the_foil_is_that_of_a_run_without_a_foil(
    model: nn.Module, support: SupportSet, many_queries: Tensor, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"layer": "features", "target": "crow", "sides": "both"}
    plain = explain(model, many_queries, support, **options)
    text, rows = written(explain(model, many_queries, support, foil="others", **options), tmp_path / "r.html")
    assert text.count('data-contrast="off"><span class="method">similarity-cam, </span>map: explains 100 %') == 5
    for index, data in enumerate(rows):
        close(numbers_of(data)[0], data["query"][0][1], plain.attributions[index, 0])
        assert data["query"][1][1] is None, "the plain map of a method without an account is not known"
    _, rows = written(plain, tmp_path / "p.html")
    assert all(values[0] == values[1] for data in rows for values in data["query"])


def test_the_whole_map_without_the_foil_is_unknown_if_not_all_supports_are_shown(
    model: nn.Module, support: SupportSet, many_queries: Tensor, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"layer": "features", "target": "jay", "sides": "both", "foil": "others"}
    for top, is_known in ((2, False), (3, True)):
        _, rows = written(explain(model, many_queries, support, top=top, **options), tmp_path / "r.html")
        assert all((data["query"][0][1] is not None) == is_known for data in rows)


def test_without_pairs_the_supports_are_shown_without_maps(
    model: nn.Module, support: SupportSet, many_queries: Tensor, tmp_path: Path
) -> None:
    why = explain(model, many_queries, support, layer="features", method="similarity-cam")
    text, rows = written(why, tmp_path / "r.html")
    counts = [sum(one.weight > 0 for one in why.supports_of(index)) for index in range(5)]
    assert [len(data["pairs"]) for data in rows] == counts
    assert all(pair == {"query": [], "support": []} for data in rows for pair in data["pairs"])
    assert text.count('class="pair"') == sum(counts)
    assert 'name="method"' not in text
    assert 'name="contrast"' not in text


def test_pairs_are_rows_with_one_support(model: nn.Module, make_images: Callable[..., Tensor], tmp_path: Path) -> None:
    left, right = make_images(6, seed=3), make_images(6, seed=4)
    why = explain_pairs(model, left, right, layer="features")
    text, rows = written(why, tmp_path / "r.html", title="Same?")
    assert [len(data["pairs"]) for data in rows] == [1] * 6
    assert "<title>Same?</title>" in text
    assert "less the gallery" in text
    assert "predicted" not in text
    assert why.pairs is not None
    for data, (pair,) in zip(rows, why.pairs, strict=True):
        wide = numbers_of(data)[0]
        close(wide, data["query"][0][1], pair.plain_query_map)
        close(wide, data["pairs"][0]["support"][0][0], pair.support_map)


@pytest.mark.parametrize(
    ("against", "threshold", "words", "whole", "ends", "most"),
    [
        (
            *("threshold", 0.25, "less the threshold 0.25", "score less the threshold 0.25"),
            *(["below the threshold", "above the threshold"], "evidence for a score above the threshold"),
        ),
        (
            *("identity", None, "similarity to itself, less the score", "similarity to itself less the score"),
            *(["alike", "where they differ"], "of the difference"),
        ),
    ],
)
def test_what_a_pair_is_compared_with_is_said(
    model: nn.Module,
    queries: Tensor,
    against: Any,
    threshold: float | None,
    words: str,
    whole: str,
    ends: list[str],
    most: str,
    tmp_path: Path,
) -> None:
    why = explain_pairs(
        model, queries, queries.flip(0), layer="features", foil=None, against=against, threshold=threshold
    )
    text = written(why, tmp_path / "r.html")[0]
    assert words in text
    assert f"map: explains 100 % of the {whole}</p>" in text
    found = re.search(r'id="page">(.*?)</script>', text)
    assert found is not None
    assert json.loads(found[1])["ends"] == {"on": ends, "off": ["against the match", "for the match"]}
    assert f"Color scale: blue is {ends[0]}, zero is transparent, orange is {ends[1]}" in text
    assert set(re.findall(r"; most (.*?) in the", text)) <= {most}
    assert f"; most {most} in the" in text


def test_a_mean_of_similarities_is_named(
    model: nn.Module, support: SupportSet, many_queries: Tensor, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"layer": "features", "target": "jay", "sides": "both"}
    for top, words in ((3, "mean of the 3 matches"), (2, "mean of 3 supports")):
        text, _ = written(explain(model, many_queries, support, top=top, **options), tmp_path / "r.html")
        assert re.findall(r"score <b>[^<]*</b>, (mean of .*?)</p>", text) == [words] * 5
    pairs = explain_pairs(model, many_queries, many_queries.flip(0), layer="features", foil=None)
    assert "mean of" not in written(pairs, tmp_path / "r.html")[0]


def test_a_distance_is_divided_from_the_embedding_of_zeros(model: nn.Module, queries: Tensor, tmp_path: Path) -> None:
    why = explain_pairs(
        model,
        queries,
        queries.flip(0),
        layer="features",
        similarity="squared-euclidean",
        method="similarity-cam",
        foil=None,
    )
    assert why.pairs is not None
    _, rows = written(why, tmp_path / "r.html")
    embeddings = model(queries).detach()
    for index, data in enumerate(rows):
        matches = data["pairs"][0]["matches"]
        distance = float((embeddings[0] - embeddings[1]).square().sum())
        assert matches["what"] == "the difference from an embedding of zeros"
        assert matches["score"] == pytest.approx(float(embeddings[1 - index].square().sum()) - distance)


def test_the_truth_names_and_orders_wrong_predictions(both_sides: Explanation, tmp_path: Path) -> None:
    predicted = [NAMES[index] for index in both_sides.predicted.tolist()]
    wrong = [1, 3]
    other = {name: NAMES[(NAMES.index(name) + 1) % 3] for name in NAMES}
    truth = {f"query-{i}": other[name] if i in wrong else name for i, name in enumerate(predicted)}
    text, _ = written(both_sides, tmp_path / "r.html", truth=truth, wrong_first=True)
    order = re.findall(r"<h2><bdi>query-(\d)", text)
    assert order == ["1", "3", "0", "2", "4"]
    assert f"<strong>Wrong</strong>: predicted <bdi>{predicted[1]}</bdi>, truly <bdi>{other[predicted[1]]}" in text


def test_explanations_are_taken_one_by_one(both_sides: Explanation, tmp_path: Path) -> None:
    alive: list[int] = []
    references: list[weakref.ref[Explanation]] = []

    def one_by_one() -> Iterator[Explanation]:
        for index in range(5):
            gc.collect()
            alive.append(sum(reference() is not None for reference in references))
            one = both_sides[index]
            references.append(weakref.ref(one))
            yield one
            del one

    write_report(one_by_one(), tmp_path / "one.html")
    assert max(alive[2:]) <= 2, "the first explanation, and the last one"
    write_report([both_sides], tmp_path / "all.html")
    assert rows_of(tmp_path / "one.html") == rows_of(tmp_path / "all.html")


def test_what_cannot_be_one_report_is_named(both_sides: Explanation, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="explanations must have at least one explanation, got none"):
        write_report([], tmp_path / "r.html")
    with pytest.raises(ValueError, match="same methods: got fam after similarity-cam, fam"):
        write_report([both_sides, *both_sides.beside], tmp_path / "r.html")
    assert not (tmp_path / "r.html").exists()


def test_the_manifest_and_the_notes_are_inside(both_sides: Explanation, tmp_path: Path) -> None:
    text, _ = written(both_sides, tmp_path / "r.html")
    assert "&quot;layer&quot;: &quot;features&quot;" in text
    assert "&quot;captum-fam&quot;" in text
    text, _ = written(both_sides, tmp_path / "r.html", manifest={"seed": "<7>"})
    assert "&quot;seed&quot;: &quot;&lt;7&gt;&quot;" in text
    assert "&quot;layer&quot;" not in text


@pytest.mark.parametrize("rank", [1, 3])
def test_signals_and_volumes_are_drawings_without_maps(
    make_net: Callable[..., nn.Module], make_images: Callable[..., Tensor], rank: int, tmp_path: Path
) -> None:
    model, inputs = make_net(rank=rank), make_images(2, rank=rank)
    why = explain_pairs(model, inputs, inputs.flip(0), layer="features", foil=None)
    text, rows = written(why, tmp_path / "r.html")
    assert text.count('src="data:image/jpeg') >= 2
    assert all(data["query"] == [None, None] for data in rows)
    assert all("matches" not in data["pairs"][0] for data in rows)
    assert "explains 100 % of the score" in text


def test_a_loaded_explanation_shows_its_best_matches(both_sides: Explanation, tmp_path: Path) -> None:
    both_sides.save(tmp_path / "why")
    _, rows = written(Explanation.load(tmp_path / "why"), tmp_path / "r.html")
    assert both_sides.pairs is not None
    for data, of_query in zip(rows, both_sides.pairs, strict=True):
        for found, pair in zip(data["pairs"], of_query, strict=True):
            expected = [
                [*(row * GRID[1] + column for row, column in (one.query, one.support)), one.share, one.cosine]
                for one in pair.matches
            ]
            np.testing.assert_allclose(found["matches"]["top"], expected, rtol=1e-6)


def test_a_page_without_matches_says_so_and_has_all_maps_and_accounts(
    model: nn.Module, support: SupportSet, many_queries: Tensor, both_sides: Explanation, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"layer": "features", "foil": "others", "sides": "both", "top": 2, "top_matches": 0}
    text, rows = written(explain(model, many_queries, support, **options), tmp_path / "r.html")
    whole, expected = written(both_sides, tmp_path / "whole.html")
    for one, is_there in ((text, False), (whole, True)):
        assert ("marks the cells that match" in one) == is_there
        assert ("matches of cells are left out" in one) != is_there
        assert one.count("explains 100 % of the score") == whole.count("explains 100 % of the score")
    for data, known in zip(rows, expected, strict=True):
        wide, wide_known = numbers_of(data)[0], numbers_of(known)[0]
        for pair, other in zip(data["pairs"], known["pairs"], strict=True):
            assert "matches" not in pair
            for side in ("query", "support"):
                for maps, maps_known in zip(pair[side], other[side], strict=True):
                    for place, place_known in zip(maps, maps_known, strict=True):
                        close(wide, place, torch.from_numpy(values_at(wide_known, place_known)))


def test_photographs_of_any_form_are_shown_in_color(model: nn.Module, queries: Tensor, tmp_path: Path) -> None:
    photos = [torch.rand(3, 300, 500), torch.rand(1, 40, 30)]
    why = explain(model, queries, queries + 1, layer="features", images=photos)
    text, _ = written(why, tmp_path / "r.html")
    assert re.findall(r'<img id="q\d" [^>]*?width="(\d+)" height="(\d+)"', text) == [("224", "134"), ("30", "40")]
