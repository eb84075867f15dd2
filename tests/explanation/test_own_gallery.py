"""A query that is in the gallery is left out of its mean similarity to the gallery."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from captum_fam import MemoryBank, SupportSet, explain
from captum_fam.support import Gallery
from tests.explanation.by_hand import as_input, cosines, embeddings, picture, small_model

QUERIES = [picture(0), picture(1), picture(2)]
BIRDS = [picture(3), picture(4)]
OTHERS = [picture(5), QUERIES[1], picture(6), picture(7)]  # the second query is in the gallery


def inputs(pictures: list[Image.Image]) -> Tensor:
    return torch.stack([as_input(one) for one in pictures]).float()


GALLERIES: dict[str, Callable[[], Any]] = {
    "pictures": lambda: OTHERS,
    "tensor": lambda: inputs(OTHERS),
    "set": lambda: SupportSet(inputs(OTHERS), ["jay", "wren", "jay", "jay"]),
    "gallery": lambda: Gallery(inputs(OTHERS)),
    "classes": lambda: {"jay": OTHERS[:1], "wren": OTHERS[1:]},
}


@pytest.mark.parametrize("form", GALLERIES)
@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_a_query_in_the_gallery_is_left_out_of_the_mean(form: str, batch_size: int) -> None:
    queries: Any = QUERIES if form in ("pictures", "classes") else inputs(QUERIES)
    support: Any = BIRDS if form in ("pictures", "classes") else inputs(BIRDS)
    options: dict[str, Any] = {"foil": "gallery", "gallery": GALLERIES[form](), "batch_size": batch_size}
    with pytest.warns(UserWarning, match="1 of 3 queries are in the gallery, as the same image; there they are left"):
        why = explain(small_model(), queries, support, method="similarity-cam", **options)
    own, gallery = (cosines(embeddings(QUERIES), embeddings(pictures)) for pictures in (BIRDS, OTHERS))
    means = torch.stack([gallery[0].mean(), gallery[1, [0, 2, 3]].mean(), gallery[2].mean()])
    torch.testing.assert_close(why.target_scores.double(), own.mean(1) - means, rtol=0, atol=1e-5)


def test_a_query_among_supports_that_are_the_gallery_is_left_out_of_both() -> None:
    birds = {"jay": [*BIRDS, QUERIES[0]], "wren": OTHERS}
    with pytest.warns(UserWarning, match="2 of 3 queries are among their own supports"):
        why = explain(small_model(), QUERIES, birds, foil="gallery", target="jay", method="similarity-cam")
    jays, wrens = (cosines(embeddings(QUERIES), embeddings(birds[name])) for name in ("jay", "wren"))
    expected = [
        jays[0, :2].mean() - torch.cat([jays[0, :2], wrens[0]]).mean(),
        jays[1].mean() - torch.cat([jays[1], wrens[1, [0, 2, 3]]]).mean(),
        jays[2].mean() - torch.cat([jays[2], wrens[2]]).mean(),
    ]
    torch.testing.assert_close(why.target_scores.double(), torch.stack(expected), rtol=0, atol=1e-5)


def test_positions_of_a_query_are_not_matched_with_its_own_in_the_gallery() -> None:
    options: dict[str, Any] = {"foil": "gallery", "method": "correspondence"}
    with pytest.warns(UserWarning, match="1 of 3 queries are in the gallery"):
        why = explain(small_model(), QUERIES, BIRDS, gallery=OTHERS, **options)
    for query, gallery in ((0, OTHERS), (1, [OTHERS[0], *OTHERS[2:]]), (2, OTHERS)):
        alone = explain(small_model(), QUERIES[query], BIRDS, gallery=gallery, **options)
        torch.testing.assert_close(why.attributions[query], alone.attributions[0])


def test_a_bank_leaves_its_own_rows_out_of_the_mean() -> None:
    rows = embeddings([*BIRDS, *QUERIES]).float()
    bank = MemoryBank(rows, ["jay"] * 5, k=2, neighbors="all").using(exclude=[2, 3, 4])
    why = explain(small_model(), QUERIES, bank, foil="gallery", method="similarity-cam")
    similarities = cosines(embeddings(QUERIES), embeddings([*BIRDS, *QUERIES]))
    for query in range(3):
        others = similarities[query, [row for row in range(5) if row != query + 2]]
        assert float(why.target_scores[query]) == pytest.approx(
            float(others.topk(2).values.mean() - others.mean()), abs=1e-5
        )


def test_a_gallery_of_the_query_alone_is_kept_and_said(tmp_path: Path) -> None:
    QUERIES[1].save(tmp_path / "one.png")
    with pytest.warns(UserWarning, match="1 of 1 queries are their own only image of the gallery"):
        explain(small_model(), tmp_path / "one.png", BIRDS, foil="gallery", gallery=[tmp_path / "one.png"])
