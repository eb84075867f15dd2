"""The numbers that a reader sees are those that torch computes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from captum_fam.explanation.pairs.one_call_for_pairs import explain_pairs
from tests.report.window import mark_cells, numbers, photo, point

GRID = (7, 5)


@pytest.mark.parametrize("cell", [3, 17, 34])
def test_the_pair_of_cells_carries_what_the_two_activations_give(
    make_net: Callable[..., nn.Module], make_images: Callable[..., Tensor], visit: Any, cell: int, tmp_path: Path
) -> None:
    model = make_net(signed=True)
    left, right = make_images(2, seed=3), make_images(2, seed=4)
    explain_pairs(model, left, right, layer="features", foil=None).to_html(tmp_path / "r.html")
    window = visit(tmp_path / "r.html")
    point(window, photo(window, "query", of_row=1), cell, GRID)
    # The embedding is the mean of the activations over the positions.
    with torch.no_grad():
        query, support = (model.features(images[1:]).flatten(2)[0] / 35 for images in (left, right))
        lengths = query.sum(1).norm() * support.sum(1).norm()
        shares = query[:, cell] @ support / lengths
        score = float(query.sum(1) @ support.sum(1) / lengths)
    percent, share, shown_score, _, whole = numbers(window, of_row=1)
    assert share == pytest.approx(float(shares.max()), rel=5e-3)
    assert shown_score == pytest.approx(score, rel=5e-3)
    assert percent == pytest.approx(100 * share / score, rel=5e-2)
    assert whole == pytest.approx(100 * float(shares.sum()) / score, rel=5e-2)
    assert mark_cells(photo(window, "support", of_row=1), GRID) == [int(shares.argmax())]
