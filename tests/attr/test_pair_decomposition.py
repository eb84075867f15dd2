"""Matches of positions against brute force, and how much memory they take."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from captum_fam.attr import EmbeddingParts, PairDecomposition, PointMatch, pair_decomposition
from captum_fam.similarity import Cosine, Dot


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


def test_counts_below_one_are_refused(pair: PairDecomposition) -> None:
    with pytest.raises(ValueError, match="count must be positive, got 0"):
        pair.top_matches(0)
    with pytest.raises(ValueError, match="k must be positive, got 0"):
        pair.best_of_query(0)


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
