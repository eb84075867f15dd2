"""Matches of positions against brute force, and how much memory they take."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from captum_fam.attr import EmbeddingParts, PairDecomposition, PointMatch, pair_decomposition
from captum_fam.similarity import Cosine, Dot, Euclidean


def parts(*grid: int, seed: int = 0, features: int = 3, dtype: torch.dtype = torch.float64) -> EmbeddingParts:
    """Random parts of one embedding on a grid, without other parts."""
    generator = torch.Generator().manual_seed(seed)
    count = int(torch.tensor(grid).prod())
    positions = torch.randn(1, count, features, generator=generator, dtype=dtype)
    descriptors = torch.nn.functional.normalize(torch.randn(1, count, 4, generator=generator, dtype=dtype), dim=2)
    rest = torch.zeros(1, features, dtype=dtype)
    return EmbeddingParts(positions.sum(1), positions, grid, {"rest": rest}, descriptors)


@pytest.fixture
def pair() -> PairDecomposition:
    return PairDecomposition(parts(3, 5, seed=1), parts(4, 2, seed=2), Cosine())


def by_force(pair: PairDecomposition) -> list[PointMatch]:
    """All matches, the largest share first, by loops over cells."""
    matrix = pair.matrix().tolist()
    (rows, columns), (other_rows, other_columns) = pair.query_grid, pair.support_grid
    first, second = parts(3, 5, seed=1).descriptors[0], parts(4, 2, seed=2).descriptors[0]
    found = []
    for q in range(rows * columns):
        for p in range(other_rows * other_columns):
            share = matrix[q][p]
            mutual = share == max(matrix[q]) and share == max(row[p] for row in matrix)
            cosine = float((first[q] * second[p]).sum())
            cells = (q // columns, q % columns), (p // other_columns, p % other_columns)
            found.append(PointMatch(*cells, share, cosine, mutual))
    return sorted(found, key=lambda match: -match.share)


def check(actual: list[PointMatch], expected: list[PointMatch]) -> None:
    assert [(m.query, m.support, m.mutual) for m in actual] == [(m.query, m.support, m.mutual) for m in expected]
    assert_close([m.share for m in actual], [m.share for m in expected])
    assert_close([m.cosine for m in actual], [m.cosine for m in expected])


@pytest.mark.parametrize("block", [1, 20, 2**22])
def test_top_matches_are_the_largest_shares(pair: PairDecomposition, block: int, monkeypatch: Any) -> None:
    monkeypatch.setattr(pair_decomposition, "_BLOCK", block)
    expected = by_force(pair)
    check(pair.top_matches(7), expected[:7])
    check(pair.top_matches(1000), expected)
    mutual = [match for match in expected if match.mutual]
    assert mutual
    check(pair.top_matches(1000, mutual=True), mutual)
    check(pair.top_matches(1, mutual=True), mutual[:1])


@pytest.mark.parametrize("block", [1, 20, 2**22])
def test_best_partners_of_every_position(pair: PairDecomposition, block: int, monkeypatch: Any) -> None:
    monkeypatch.setattr(pair_decomposition, "_BLOCK", block)
    for best, matrix in ((pair.best_of_query(3), pair.matrix()), (pair.best_of_support(3), pair.matrix().T)):
        indices, shares = best
        for row, chosen, values in zip(matrix.tolist(), indices.tolist(), shares.tolist(), strict=True):
            assert chosen == sorted(range(len(row)), key=lambda number: -row[number])[:3]
            assert_close(values, sorted(row, reverse=True)[:3])
    assert pair.best_of_query(99)[0].shape == (15, 8)


def test_blocks_equal_the_matrix(pair: PairDecomposition) -> None:
    assert pair.shape == (15, 8)
    assert_close(torch.cat([pair.rows(0, 4), pair.rows(4, 15)]), pair.matrix())
    assert_close(torch.cat([pair.columns(0, 7), pair.columns(7, 8)]), pair.matrix().T)


@pytest.mark.parametrize("mutual", [False, True])
def test_matches_of_a_large_pair_never_make_the_matrix(mutual: bool, largest_tensor: Any) -> None:
    query, support = parts(120, 120, seed=1, dtype=torch.float32), parts(120, 120, seed=2, dtype=torch.float32)
    with largest_tensor() as seen:
        pair = PairDecomposition(query, support, Dot())
        matches = pair.top_matches(16, mutual=mutual)
        pair.best_of_query(2)
        pair.best_of_support(2)
    assert seen.numel <= 2**22 < 120**4 / 49
    # The best pair, found another way: row by row.
    first, second = query.positions[0], support.positions[0]
    best = max(float((second @ row).max()) for row in first)
    assert_close(matches[0].share, best)
    assert matches[0].mutual


def test_a_matrix_above_the_limit_is_refused() -> None:
    pair = PairDecomposition(parts(3, 5), parts(4, 2), Cosine())
    assert pair.matrix(max_bytes=15 * 8 * 8).shape == (15, 8)
    with pytest.raises(ValueError, match=r"matrix of 15 x 8 positions takes 960 bytes, more than 959; use rows\(\)"):
        pair.matrix(max_bytes=959)


def test_cells_of_signals_and_volumes() -> None:
    pair = PairDecomposition(parts(7), parts(2, 3, 4), Dot())
    match = pair.top_matches(1)[0]
    number = int(pair.matrix().argmax())
    assert match.query == (number // 24,)
    assert match.support == tuple(int(index) for index in torch.unravel_index(torch.tensor(number % 24), (2, 3, 4)))
    assert pair.query_map.shape == (7,)
    assert pair.support_map.shape == (2, 3, 4)


def test_a_hand_worked_pair() -> None:
    def of(rows: list[list[float]]) -> EmbeddingParts:
        positions = torch.tensor([rows], dtype=torch.float64)
        return EmbeddingParts(positions.sum(1), positions, (1, 2), {"rest": torch.zeros(1, 2)}, torch.ones(1, 2, 1))

    # Embeddings (3, 4) and (5, 12) of lengths 5 and 13.
    pair = PairDecomposition(of([[3.0, 0.0], [0.0, 4.0]]), of([[5.0, 2.0], [0.0, 10.0]]), Cosine())
    assert_close(pair.score, 63 / 65)
    assert_close(65 * pair.matrix(), torch.tensor([[15.0, 0.0], [8.0, 40.0]], dtype=torch.float64))
    assert_close(65 * pair.query_map, torch.tensor([[15.0, 48.0]], dtype=torch.float64))
    assert_close(65 * pair.support_map, torch.tensor([[23.0, 40.0]], dtype=torch.float64))
    assert [match[:2] for match in pair.top_matches(2)] == [((0, 1), (0, 1)), ((0, 0), (0, 0))]
    assert pair.query_coverage == pytest.approx(1)
    assert list(pair.query_shares) == ["map", "rest"]


def test_counts_that_are_no_positive_whole_numbers_are_refused(pair: PairDecomposition) -> None:
    calls: dict[str, Any] = {"count": pair.top_matches, "k": pair.best_of_query}
    for name, call in calls.items():
        with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
            call(0)
        for value in (2.5, "a", True):
            with pytest.raises(TypeError, match=f"{name} must be a whole number, got {value}"):
                call(value)
    with pytest.raises(TypeError, match=r"k must be a whole number, got 1\.5"):
        pair.best_of_support(1.5)  # type: ignore[arg-type]
    assert len(pair.top_matches(np.int64(3))) == 3  # type: ignore[arg-type]


def test_anything_but_parts_of_one_image_is_refused() -> None:
    one = parts(2, 2)
    for name, pair_of in (("query", (torch.ones(1, 3), one)), ("support", (one, torch.ones(1, 3)))):
        with pytest.raises(TypeError, match=f"{name} must be the parts of one image, .*got Tensor"):
            PairDecomposition(*pair_of, Cosine())  # type: ignore[arg-type]


def test_shares_have_the_precision_of_the_parts_under_autocast() -> None:
    query, support = parts(3, 5, seed=1, dtype=torch.float32), parts(4, 2, seed=2, dtype=torch.float32)
    plain = PairDecomposition(query, support, Cosine())
    weights = torch.randn(1, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        pair = PairDecomposition(query, support, Cosine())
        found = [pair.matrix(), pair.rows(1, 4), pair.columns(0, 2), pair.cosines(2, 9), *pair.best_of_query(3)]
        found += [*pair.best_of_support(2), query.account(weights)[0]]
        matches = pair.top_matches(9)
    expected = [plain.matrix(), plain.rows(1, 4), plain.columns(0, 2), plain.cosines(2, 9), *plain.best_of_query(3)]
    expected += [*plain.best_of_support(2), query.account(weights)[0]]
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)
    assert matches == plain.top_matches(9)


def test_equal_embeddings_have_a_distance_of_zero_without_a_sign() -> None:
    assert str(PairDecomposition(parts(2, 2), parts(2, 2), Euclidean()).score) == "0.0"


def test_parts_are_indexed_by_any_whole_number() -> None:
    batch = EmbeddingParts(
        *(torch.arange(6.0).view(3, 2), torch.arange(12.0).view(3, 2, 2)), (2,), {}, torch.ones(3, 2, 1)
    )
    for index in (1, np.int64(1), torch.tensor(1), -2, np.uint8(1)):
        assert batch[index].embedding.tolist() == [[2.0, 3.0]]  # type: ignore[index]
    assert [len(one) for one in batch] == [1, 1, 1]  # type: ignore[attr-defined]
    for index in (3, -4):
        with pytest.raises(IndexError, match=f"index {index} is out of range: these are the parts of 3 images"):
            batch[index]
    for wrong in ("a", None, [0], 1.0):
        with pytest.raises(TypeError, match="integer"):
            batch[wrong]  # type: ignore[index]


@pytest.mark.parametrize("shape", [(3,), (1, 3), (2, 4), (2, 1, 3)])
def test_an_account_needs_one_weight_per_feature(shape: tuple[int, ...]) -> None:
    one = parts(2, 2)
    two = EmbeddingParts(
        *(torch.cat([part, part]) for part in (one.embedding, one.positions)), (2, 2), {}, torch.ones(2, 4, 1)
    )
    with pytest.raises(ValueError, match=r"weights must be \(B, J\) = \(2, 3\), got \("):
        two.account(torch.ones(shape))


def test_maps_that_are_rounding_are_zero() -> None:
    def of(noise: float) -> EmbeddingParts:
        positions = torch.full((1, 4, 2), noise, dtype=torch.float64)
        token = torch.tensor([[1.0, 2.0]], dtype=torch.float64)
        others: dict[str, Tensor] = {"class token": token, "rest": -positions.sum(1)}
        return EmbeddingParts(token, positions, (2, 2), others, torch.ones(1, 4, 1))

    pair = PairDecomposition(of(1e-9), of(1e-9), Cosine())
    assert not pair.query_map.any()
    assert not pair.support_map.any()
    assert pair.query_shares["map"] == 0
    assert pair.query_coverage == 0
    assert_close(sum(pair.query_shares.values()), pair.score)
