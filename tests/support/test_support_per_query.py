"""Supports of each query's own, without some of them."""

from __future__ import annotations

import pytest
import torch

from captum_fam import SupportPerQuery

ROWS = torch.tensor([[[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]], [[0.8, 0.6], [1.0, 0.0], [0.0, 1.0]]])
QUERY = torch.tensor([[1.0, 0.0], [0.0, 1.0]])


def test_supports_that_are_left_out_do_not_count() -> None:
    support = SupportPerQuery(ROWS, is_support=torch.tensor([[True, True, True], [True, True, False]]))
    some = support.leave_out(torch.tensor([[True, False, False], [False, False, False]]))
    # (0.6 + 0) / 2, and (0.6 + 0) / 2: the third entry of the second query is no support.
    assert some.compare(QUERY).scores.flatten().tolist() == pytest.approx([0.3, 0.3])
    assert some.compare(QUERY).support_weights.tolist() == [[0, 0.5, 0.5], [0.5, 0.5, 0]]
    assert support.compare(QUERY).scores[0].item() == pytest.approx(1.6 / 3)
    with pytest.raises(ValueError, match="left_out: nothing is left for query 1"):
        support.leave_out(torch.tensor([[False, False, False], [True, True, False]]))


def test_classes_that_are_left_out_have_no_score() -> None:
    support = SupportPerQuery(ROWS, [["jay", "wren", "wren"], ["jay", "jay", "wren"]])
    some = support.leave_out(torch.tensor([[True, False, False], [True, False, False]]))
    assert some.compare(QUERY).scores.tolist() == [[-torch.inf, pytest.approx(0.3)], [0, 1]]
    assert some.members().present.tolist() == [[False, True], [True, True]]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.float32, torch.float64])
def test_the_weights_of_images_of_any_type(dtype: torch.dtype) -> None:
    images = torch.ones(2, 3, 1, 4, 4).to(dtype)
    support = SupportPerQuery(images, [[0, 0, 0], [0, 0, 1]])
    expected = [[1 / 3, 1 / 3, 1 / 3], [0.5, 0.5, 0]]
    for row, weights in zip(support.members().weights(torch.tensor([0, 0])).tolist(), expected, strict=True):
        assert row == pytest.approx(weights, abs=1e-6)


def test_all_queries_without_a_class_are_named() -> None:
    support = SupportPerQuery(torch.rand(12, 2, 3), [["jay", "jay"]] * 11 + [["wren", "jay"]])
    with pytest.raises(ValueError, match=r"queries 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, \.\.\. \(11 of 12\) have no support"):
        support.members().weights(torch.ones(12, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"foil: all supports of queries 0, .*\(11 of 12\) are of one class"):
        support.members().require_others()
    one = support.for_queries(10, 12)
    with pytest.raises(ValueError, match="support: query 0 has no support of class wren; leave out such queries"):
        one.members().weights(torch.tensor([1, 0]))
