"""Labels of any kind become class indices and names."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from captum_fam.support.labels import check_class_names, encode_label_rows, encode_labels


@pytest.mark.parametrize(
    ("labels", "class_names", "indices", "names"),
    [
        ([2, 0, 1], None, [2, 0, 1], ("0", "1", "2")),
        (torch.tensor([5, 3, 5]), None, [1, 0, 1], ("3", "5")),
        (torch.tensor([200, 7], dtype=torch.uint8), None, [1, 0], ("7", "200")),
        (torch.tensor([65_535, 7], dtype=torch.uint16), None, [1, 0], ("7", "65535")),
        (torch.tensor([2**32 - 1, 7], dtype=torch.uint32), None, [1, 0], ("7", "4294967295")),
        (np.array([2**64 - 1, 7], dtype=np.uint64), None, [1, 0], ("7", str(2**64 - 1))),
        (np.array([3, -2], dtype=np.int16), None, [1, 0], ("-2", "3")),
        ([2**63, -1, 10**30, -1], None, [1, 0, 2, 0], ("-1", str(2**63), str(10**30))),
        ([np.uint8(4), torch.tensor(9), np.array(4), 9], None, [0, 1, 0, 1], ("4", "9")),
        (range(3), None, [0, 1, 2], ("0", "1", "2")),
        (["wren", "jay"], None, [1, 0], ("jay", "wren")),
        (np.array(["wren", "jay"]), None, [1, 0], ("jay", "wren")),
        (np.array(["wren", "jay"], dtype=object), None, [1, 0], ("jay", "wren")),
        (["10", "9"], None, [0, 1], ("10", "9")),
        (("wren", "jay"), ["wren", "tit", "jay"], [0, 2], ("wren", "tit", "jay")),
        (np.array([2, 0], dtype=np.uint16), ["wren", "tit", "jay"], [2, 0], ("wren", "tit", "jay")),
        ([1, 0], np.array(["crane", "crane"]), [1, 0], ("crane", "crane")),
        ([], ["wren"], [], ("wren",)),
    ],
)
def test_each_kind_of_labels(labels: Any, class_names: Any, indices: list[int], names: tuple[str, ...]) -> None:
    encoded, found = encode_labels(labels, class_names, len(indices))
    assert encoded.dtype == torch.int64
    assert (encoded.tolist(), found) == (indices, names)


@pytest.mark.parametrize(
    ("labels", "class_names", "error", "message"),
    [
        ([0.0, 1.0], None, TypeError, "birds must be whole numbers or names, got float"),
        (torch.zeros(2), None, TypeError, "birds must be whole numbers or names, got torch.float32"),
        (torch.zeros(2, dtype=torch.bool), None, TypeError, "birds .*torch.bool"),
        (torch.zeros(2, dtype=torch.complex64), None, TypeError, "birds .*torch.complex64"),
        (np.array([True, False]), None, TypeError, "birds .*bool"),
        ([np.bool_(True), 1], None, TypeError, "birds .*bool, int"),
        ([torch.tensor(True), 1], None, TypeError, "birds .*bool, int"),
        ([1j, 0], None, TypeError, "birds .*complex"),
        ([None, 1], None, TypeError, "birds .*NoneType, int"),
        ([b"jay", b"tit"], None, TypeError, "birds .*bytes"),
        (["jay", 1], None, TypeError, "birds .*not both, got int, str"),
        ({0, 1}, None, TypeError, "birds .*set"),
        ({0: 1, 1: 1}, None, TypeError, "birds .*dict"),
        (3, None, TypeError, "birds .*int"),
        ("ab", None, TypeError, "birds .*single name 'ab'"),
        ([0, 1, 2], None, ValueError, "birds .*got 3 birds for 2 supports"),
        (torch.zeros(2, 1).int(), None, ValueError, r"birds .*\(2,\).*\(2, 1\)"),
        (torch.tensor(3), None, ValueError, r"birds .*\(2,\).*\(\)"),
        ([0, 2], ["jay", "tit"], ValueError, r"birds must be indices 0\.\.1 .*got 2"),
        ([0, -1], ["jay", "tit"], ValueError, r"birds must be indices 0\.\.1 .*got -1"),
        (np.array([0, 2**63], dtype=np.uint64), ["jay", "tit"], ValueError, f"birds .*got {2**63}"),
        (["jay", "owl\n"], ["jay", "tit"], ValueError, r"class_names lacks .*'owl\\n'"),
        (["jay", "tit"], ["jay", "tit", "jay"], ValueError, "class_names has 'jay' twice"),
        ([0, 1], "ab", TypeError, "class_names .*single text 'ab'"),
        ([0, 1], [0, 1], TypeError, "class_names must be texts, got int"),
    ],
)
def test_what_is_no_label_is_named(labels: Any, class_names: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        encode_labels(labels, class_names, 2, "birds")


def test_many_unknown_names_are_counted() -> None:
    with pytest.raises(ValueError, match="'a', 'b', 'c' and 2 more"):
        encode_labels(list("abcde"), ["jay"], 5)


def test_rows_of_labels_ignore_what_is_no_support() -> None:
    mask = torch.tensor([[True, True], [True, False], [False, True]])
    expected = ([[0, 1], [1, 0], [0, 0]], ("7", "9"))
    for labels in (
        [[7, 9], [9, None], [None, 7]],
        torch.tensor([[7, 9], [9, -1], [10**9, 7]]),
        np.array([[7, 9], [9, 0], [0, 7]], dtype=np.uint16),
    ):
        indices, names = encode_label_rows(labels, None, mask)
        assert (indices.tolist(), names) == expected


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        ([[0, 1]], ValueError, r"labels must be \(2, 2\).*\(1, 2\)"),
        ([[0, 1], [0]], ValueError, r"labels must be \(2, 2\)"),
        ([0, 1], TypeError, r"labels must be \(B, K\)"),
        (torch.zeros(2, 2), TypeError, "labels must be whole numbers or names, got float"),
        ([[0, None], [1, 1]], TypeError, "labels .*NoneType"),
    ],
)
def test_rows_of_labels_that_do_not_fit_are_named(labels: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        encode_label_rows(labels, None, torch.ones(2, 2, dtype=torch.bool))


def test_a_class_of_several_names_gets_one_text() -> None:
    assert check_class_names([("tench", "Tinca tinca"), "goldfish"]) == ("tench, Tinca tinca", "goldfish")
