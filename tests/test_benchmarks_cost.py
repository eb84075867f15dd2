"""The cost page: fitted exponents, quartiles, and the whole of it on two small sizes."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from benchmarks import cost
from benchmarks.measure import fitted_exponent, paired_ratio, paired_seconds, quartiles


@pytest.mark.parametrize("power", [0.0, 1.0, 2.0, -0.5])
def test_the_exponent_of_an_exact_power_law_is_its_power(power: float) -> None:
    work = [1, 10, 300, 2000]
    found = fitted_exponent(work, [7 * size**power for size in work])
    assert found.value == pytest.approx(power, abs=1e-9)
    assert found.half_width == pytest.approx(0, abs=1e-6)


def test_the_interval_of_an_exponent_is_that_of_a_regression_by_hand() -> None:
    # Logarithms: x = -1, 0, 1 and y = -1, 1, 1. Slope 1, residuals -1/3, 2/3, -1/3, one degree of freedom.
    found = fitted_exponent([math.exp(x) for x in (-1, 0, 1)], [math.exp(y) for y in (-1, 1, 1)])
    assert found.value == pytest.approx(1)
    assert found.half_width == pytest.approx(12.706 * math.sqrt(6 / 9 / 2), rel=1e-6)
    assert str(found) == "1.00 ± 7.34"


def test_two_points_have_an_exponent_without_an_interval() -> None:
    found = fitted_exponent([1, 4], [1, 2])
    assert str(found) == "0.50"
    assert math.isnan(found.half_width)


def test_rounds_are_paired_with_the_bare_passes_around_them(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 1.0, 1.0, 5.0, 5.0, 8.0, 8.0, 14.0, 14.0, 15.0])  # bare 1, call 4, bare 3, call 6, bare 1
    monkeypatch.setattr("benchmarks.measure.time.process_time", lambda: next(clock))
    calls = []
    seconds = paired_seconds(lambda: calls.append("call"), lambda: calls.append("bare"), 2)
    assert seconds == [(4.0, 2.0), (6.0, 2.0)]
    assert calls == ["bare", "call", "bare", "call", "bare", "call", "bare"]


def test_quartiles_and_the_ratio_of_equal_calls() -> None:
    assert quartiles([3.0]) == (3.0, 3.0, 3.0)
    assert quartiles([1.0, 2.0, 3.0]) == (1.0, 2.0, 3.0)
    median, lower, upper = paired_ratio(lambda: sum(range(20000)), lambda: sum(range(20000)), 5)
    assert 0 < lower <= median <= upper


def test_every_method_of_a_case_gives_a_map() -> None:
    calls, bare = cost.build(cost.Work(side=64, batch=2, supports=1))
    assert bare().shape == (2, 512)
    assert {name: tuple(call().shape) for name, call in calls.items()} == dict.fromkeys(cost.METHODS, (2, 1, 2, 2))


def test_the_page_is_written_from_kept_cases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def measured(module: str, **case: int) -> dict[str, object]:
        asked.append(case)
        if "rows" in case:
            return {"seconds": case["rows"] / 1e5, "lower": 0.1, "upper": 0.2, "mib": 3.0}
        work = case["side"] ** 2 * case["batch"]
        names = ("bare", *cost.METHODS)
        numbers = {
            name: {"seconds": work * i, "ratio": i, "lower": i, "upper": i, "mib": work}
            for i, name in enumerate(names, 1)
        }
        return numbers

    monkeypatch.setattr(cost, "last_line_of", measured)
    threads = torch.get_num_threads()
    command = ["--quick", "--rounds", "3", "--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "page.md")]
    try:
        cost.main(command)
        count = len(asked)
        cost.main(command)
    finally:
        torch.set_num_threads(threads)
    assert len(asked) == count
    text = (tmp_path / "page.md").read_text()
    assert "| captum LayerGradCam | 2.00 | 2.00 |" in text
    assert "| LayerFAM | 1.00 | 1.00 |" in text
    assert "Exponent of rows: time 1.00." in text
