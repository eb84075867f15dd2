"""Time and memory of a call against those of a bare forward pass."""

from __future__ import annotations

import json
import math
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile


@dataclass(frozen=True)
class Cost:
    """Cost of a call: CPU time in units of the bare pass measured beside it, with quartiles, and memory."""

    ratio: float
    lower: float
    upper: float
    peak_mib: float


def peak_mib() -> float:
    """Largest resident memory of this process so far, in MiB (Linux counts it in KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def resident_mib() -> float:
    """Resident memory of this process now, in MiB (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def peak_tensor_mib(call: Callable[[], object]) -> float:
    """Most memory that tensors made by ``call`` held at once, in MiB, as torch's profiler counts it.

    Unlike the resident memory it does not depend on what the allocator keeps for later.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    changes = sorted((event["ts"], event["args"]["Bytes"]) for event in events if event["name"] == "[memory]")
    return max(accumulate(size for _, size in changes)) / 2**20


def paired_ratio(call: Callable[[], object], bare: Callable[[], object], rounds: int) -> tuple[float, float, float]:
    """Median and quartiles of the CPU-time ratio of ``call`` to the mean of the bare passes before and after it.

    CPU time of the process rather than the clock's, so that other work on the machine counts less.
    """
    ratios = [taken / beside for taken, beside in paired_seconds(call, bare, rounds)]
    lower, median, upper = quartiles(ratios)
    return median, lower, upper


def paired_seconds(
    call: Callable[[], object], bare: Callable[[], object], rounds: int, *, warm: bool = True
) -> list[tuple[float, float]]:
    """CPU seconds of ``call``, and the mean of those of the bare passes before and after it, round by round.

    Args:
        call: the call to measure.
        bare: the bare pass beside it.
        rounds: number of calls.
        warm: whether a call that does not count comes first.
    """
    bare()
    if warm:
        call()
    seconds = []
    before = cpu_seconds(bare)
    for _ in range(rounds):
        taken = cpu_seconds(call)
        after = cpu_seconds(bare)
        seconds.append((taken, (before + after) / 2))
        before = after
    return seconds


def cpu_seconds(call: Callable[[], object]) -> float:
    """CPU time of this process during a call."""
    start = time.process_time()
    call()
    return time.process_time() - start


@dataclass(frozen=True)
class Exponent:
    """How fast a cost grows with the work: the cost is proportional to work to this power.

    Attributes:
        value: slope of the line through the logarithms.
        half_width: half the width of its 95 % interval; NaN for less than three points.
    """

    value: float
    half_width: float

    def __str__(self) -> str:
        return f"{self.value:.2f}" + ("" if math.isnan(self.half_width) else f" ± {self.half_width:.2f}")


# The 0.975 quantiles of Student's t for 1 to 10 degrees of freedom.
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)


def fitted_exponent(work: Sequence[float], cost: Sequence[float]) -> Exponent:
    """Least squares of ``log cost = exponent * log work + constant``.

    Args:
        work: sizes, positive, at least two different ones.
        cost: what each size costs, positive.
    """
    x, y = ([math.log(number) for number in numbers] for numbers in (work, cost))
    slope, constant = statistics.linear_regression(x, y)
    freedom = len(x) - 2
    if freedom < 1:
        return Exponent(slope, math.nan)
    squares = sum((slope * a + constant - b) ** 2 for a, b in zip(x, y, strict=True))
    spread = sum((a - statistics.mean(x)) ** 2 for a in x)
    return Exponent(slope, _T[min(freedom, len(_T)) - 1] * math.sqrt(squares / freedom / spread))


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Lower quartile, median and upper quartile; a single value is all three."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    lower, middle, upper = statistics.quantiles(values)
    return lower, middle, upper


def last_line_of(module: str, **options: object) -> dict[str, Any]:
    """Run ``python -m module --case '{...}'``, a process of its own, and read the JSON of its last line."""
    command = [sys.executable, "-m", module, "--case", json.dumps(options)]
    finished = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    if finished.returncode:
        raise RuntimeError(f"{options} failed:\n{finished.stderr}")
    found: dict[str, Any] = json.loads(finished.stdout.splitlines()[-1])
    return found


def in_own_process(module: str, **options: object) -> Cost:
    """The :class:`Cost` that :func:`last_line_of` a module has."""
    return Cost(**last_line_of(module, **options))


def print_cost(cost: Any) -> None:
    """The last line of a child process: the fields of a dataclass, such as :class:`Cost`."""
    print(json.dumps(asdict(cost)))


def machine() -> str:
    """Hardware and versions, for the head of a table."""
    cpu = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else ():
        if line.startswith("model name"):
            cpu = line.partition(":")[2].strip()
            break
    return f"{cpu}, threads: {torch.get_num_threads()}; Python {platform.python_version()}, torch {torch.__version__}"
