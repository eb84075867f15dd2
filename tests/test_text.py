"""Text for a terminal: nothing in it acts on the terminal, and nothing in it is long."""

from __future__ import annotations

import sys

import pytest
import torch

from captum_fam._text import first_line, printable, printable_path


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("layer1.0.conv1.weight", "layer1.0.conv1.weight"),
        ("\x1b[2J\x1b[H", "\\x1b[2J\\x1b[H"),
        ("a\nb\tc\rd\0e\x7f\x9b", "a\\nb\\tc\\rd\\x00e\\x7f\\x9b"),
        ("\ud800 and \udcff", "\\ud800 and \\udcff"),
        ("gnp.\u202efdp", "gnp.\\u202efdp"),
        ("a\u2028b\u2029c", "a\\u2028b\\u2029c"),
        ("Ünïcode 写真 \U0001f468\u200d\U0001f469", "Ünïcode 写真 \U0001f468\u200d\U0001f469"),
        ("C:\\new\\table", "C:\\new\\table"),
        (b"\x00\xff", "b'\\x00\\xff'"),
        (None, "None"),
        (-5, "-5"),
        (ValueError("no\x07"), "no\\x07"),
    ],
)
def test_what_acts_on_a_terminal_is_escaped_and_all_else_stays(text, shown):
    assert printable(text) == shown
    printable(text).encode("utf-8")


def test_long_text_is_cut_and_its_length_is_added():
    assert printable("a" * 200) == "a" * 200
    assert printable("a" * 201) == "a" * 200 + "... (201 characters)"
    assert printable("\x1b" * 10, limit=10) == "\\x1b\\x1b\\x... (10 characters)"
    assert printable(b"ab" * 150) == "300 bytes"


def test_huge_numbers_and_deep_containers_cost_nothing():
    assert printable(1 << 10_000_000) == "integer of 10000001 bits"
    nested: object = (1,)
    for _ in range(60):
        nested = (nested, nested)  # 2 ** 60 leaves
    assert len(printable(nested)) <= 230
    assert printable([1, {"a": 1 << 5000}, "b" * 100]) == f"[1, {{'a': integer of 5001 bits}}, '{'b' * 30}']"
    assert printable([None, True, 0.5, b"a", "a", {1}, torch.ones(2)]) == "[None, True, 0.5, b'a', 'a', {1}, ...]"
    assert printable((torch.ones(10**6),)) == "(<Tensor>,)"
    deep: list = []
    for _ in range(sys.getrecursionlimit() * 2):
        deep = [deep]
    assert printable(deep) == "[[[[...]]]]"


def test_the_end_of_a_path_is_never_cut():
    assert printable_path("a/" * 500 + "b\n.jpg") == "a/" * 500 + "b\\n.jpg"


def test_the_reason_of_an_error_is_one_line():
    assert first_line(ValueError("\nbad size\x1b[2J\nadvice of the library")) == "bad size\\x1b[2J"
    assert first_line(ValueError("a\rb")) == "a\\rb"
    assert first_line(ValueError()) == ""
    assert first_line(ValueError("a" * 501)) == "a" * 500 + "... (501 characters)"
