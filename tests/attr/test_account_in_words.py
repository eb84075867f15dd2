"""What is said of an account, and what is too small to be drawn."""

from __future__ import annotations

import pytest
import torch

from captum_fam.attr.account import coverage_in_words, drop_noise, mean_of_layers, number_in_words, score_in_words


@pytest.mark.parametrize(
    ("coverage", "shares", "words"),
    [
        (1.0, {"map": 0.5, "rest": 1e-9}, "explains 100 % of the score"),
        (
            0.12,
            {"map": 0.12, "bias": 0.03, "class token": 0.85},
            "explains 12 % of the score; class token 85 %, bias 3 %",
        ),
        (1.5, {"map": 3.0, "bias": -1.0, "rest": 0.0}, "explains 150 % of the score; bias -50 %"),
        (0.5, {"map": -1.0, "bias": -1.0, "rest": 0.0}, "explains 50 % of the score; bias 50 %"),
        (-0.004, {"map": -0.004, "rest": 1.004}, "explains 0 % of the score; rest 100 %"),
        (float("nan"), {"map": 1.0, "bias": -1.0, "rest": 0.0}, "the score is zero"),
        (
            1.0,
            {"map": 11.0, "zero embedding": -14.0, "rest": 0.0},
            "explains 100 % of the difference of 11.0 from an embedding of zeros",
        ),
        (
            0.75,
            {"map": 9.0, "bias": 3.0, "zero embedding": -14.0, "rest": 0.0},
            "explains 75 % of the difference of 12.0 from an embedding of zeros; bias 25 %",
        ),
        (
            float("nan"),
            {"map": 0.0, "zero embedding": -14.0, "rest": 0.0},
            "the difference from an embedding of zeros is zero",
        ),
    ],
)
def test_coverage_and_the_parts_beside_the_map_are_shares_of_the_explained_score(
    coverage: float, shares: dict[str, float], words: str
) -> None:
    assert coverage_in_words(coverage, shares) == words


def test_a_score_has_three_digits_and_a_distance_its_two_parts() -> None:
    assert score_in_words(0.7314) == "0.731"
    assert score_in_words(-3.0, -14.0) == "-3.00, which is 11.0 more than an embedding of zeros has (-14.0)"
    assert score_in_words(-3.0, -1.5) == "-3.00, which is 1.50 less than an embedding of zeros has (-1.50)"
    numbers = {0.0: "0.00", 246.4: "246", -61234.0: "-61,200", 999.6: "1.00e+03", 1e12: "1.00e+12", 2e-42: "2.00e-42"}
    assert {value: number_in_words(value) for value in numbers} == numbers
    assert number_in_words(-0.0) == "0.00"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_noise_is_a_millionth_of_the_scores_at_any_scale(scale: float, dtype: torch.dtype) -> None:
    rows = [[1.1e-6, 0.0], [-0.9e-6, 0.9e-6], [-1.1e-6, 0.1e-6], [0.0, 0.0]]
    maps = torch.tensor(rows, dtype=dtype).view(4, 1, 1, 2) * scale
    kept = drop_noise(maps, torch.full((4,), scale, dtype=torch.float64))
    assert torch.equal(kept[[0, 2, 3]], maps[[0, 2, 3]])
    assert not kept[1].any()
    assert kept.dtype == dtype


def test_the_smallest_numbers_beside_scores_as_small_are_no_noise() -> None:
    maps = torch.tensor([[[2e-42, 1e-43]], [[1e-45, 0.0]]])
    assert torch.equal(drop_noise(maps, torch.tensor([1e-41, 0.0])), maps)


def test_the_mean_over_layers_keeps_the_mean_of_the_sums() -> None:
    fine, coarse = torch.rand(3, 2, 7, 5, dtype=torch.float64), torch.rand(3, 2, 4, 2, dtype=torch.float64)
    mean = mean_of_layers([coarse, fine])
    assert mean.shape == fine.shape
    torch.testing.assert_close(mean.sum((2, 3)), (fine.sum((2, 3)) + coarse.sum((2, 3))) / 2)
    assert torch.equal(mean_of_layers([fine]), fine)
    # Neither of two grids is finer in both directions.
    assert mean_of_layers([torch.rand(1, 1, 2, 6), torch.rand(1, 1, 3, 4)]).shape == (1, 1, 3, 6)
