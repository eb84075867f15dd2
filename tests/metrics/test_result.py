from __future__ import annotations

import math
import statistics

import pytest
import torch

from captum_fam.metrics import Result, summarize

NAN = float("nan")


def test_mean_and_interval_are_those_of_the_defined_values() -> None:
    result = summarize(torch.tensor([0.0, 1.0, NAN, 0.5, 0.5], dtype=torch.float64))
    assert result.value == 0.5
    assert result.n == 4
    # population variance 0.5 / 4, so std = 0.35355 and 1.96 std / sqrt(4)
    assert result.half_width == pytest.approx(1.96 * math.sqrt(0.125) / 2)
    assert result.n_groups is None


def test_every_left_out_sample_is_counted_once_with_its_reason() -> None:
    values = torch.tensor([0.2, NAN, NAN, NAN, 0.0])
    nan = torch.tensor([False, True, False, False, False])
    empty = torch.tensor([False, False, True, False, True])
    result = summarize(values, nan=nan, empty=empty)
    # The last one is empty but has a value: it is in the mean and among the empty ones.
    assert (result.n, result.n_nan, result.n_empty, result.n_skipped) == (2, 1, 2, 1)
    assert result.value == pytest.approx(0.1)


def test_groups_are_averaged_first_and_weigh_the_same() -> None:
    values = torch.tensor([1.0, 0.0, 0.0, 0.0, 1.0, NAN, NAN], dtype=torch.float64)
    groups = torch.tensor([7, 3, 3, 3, 7, 7, 9])
    result = summarize(values, groups)
    # episode 7 has the mean 1, episode 3 the mean 0, episode 9 no value at all
    assert result.value == 0.5
    assert (result.n, result.n_groups, result.n_skipped) == (5, 2, 2)
    assert result.half_width == pytest.approx(1.96 * 0.5 / math.sqrt(2))


def test_grouped_mean_agrees_with_an_independent_one() -> None:
    values = torch.rand(200, dtype=torch.float64)
    groups = torch.randint(0, 17, (200,))
    means = [
        statistics.fmean(v for v, g in zip(values.tolist(), groups.tolist(), strict=True) if g == group)
        for group in set(groups.tolist())
    ]
    result = summarize(values, groups)
    assert result.value == pytest.approx(statistics.fmean(means), rel=1e-14)
    assert result.half_width == pytest.approx(1.96 * statistics.pstdev(means) / math.sqrt(len(means)), rel=1e-12)


def test_order_of_the_samples_does_not_change_the_last_digit() -> None:
    values = torch.rand(1001) * 10 ** torch.randint(-6, 6, (1001,)).float()
    groups = torch.randint(0, 30, (1001,))
    order = torch.randperm(1001)
    assert summarize(values) == summarize(values[order])
    assert summarize(values, groups) == summarize(values[order], groups[order])


def test_nothing_counted_is_nan_and_one_sample_has_no_interval() -> None:
    nothing = summarize(torch.tensor([NAN]), groups=torch.tensor([0]))
    assert math.isnan(nothing.value)
    assert nothing.n == nothing.n_groups == 0
    one = summarize(torch.tensor([0.25]))
    assert one.value == 0.25
    assert math.isnan(one.half_width)


def test_result_is_made_of_python_numbers() -> None:
    result = summarize(torch.tensor([0.25, 0.75]), nan=torch.tensor([False, False]))
    assert isinstance(result, Result)
    assert [type(number) for number in result] == [float, float, int, int, int, int, type(None)]


def test_lengths_must_agree() -> None:
    with pytest.raises(ValueError, match=r"groups .*\(2,\) .*values \(3,\)"):
        summarize(torch.rand(3), groups=torch.zeros(2, dtype=torch.int64))
