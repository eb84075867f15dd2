"""Time and memory of a call against those of a bare forward pass, each in a process of its own."""

from __future__ import annotations

import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class Cost:
    """Cost of a call in units of the bare pass measured beside it; memory is the growth of the process's peak."""

    ratio: float
    ratio_low: float
    ratio_high: float
    peak_mib: float


def peak_mib() -> float:
    """Largest resident memory of this process so far, in MiB (Linux counts it in KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def paired_ratio(call: Callable[[], object], bare: Callable[[], object], rounds: int) -> tuple[float, float, float]:
    """Median, least and largest CPU-time ratio of ``call`` to the mean of the bare passes before and after it.

    CPU time of the process rather than the clock's, so that other work on the machine counts less.
    """

    def cpu_seconds(run: Callable[[], object]) -> float:
        start = time.process_time()
        run()
        return time.process_time() - start

    bare()
    call()
    ratios = []
    before = cpu_seconds(bare)
    for _ in range(rounds):
        taken = cpu_seconds(call)
        after = cpu_seconds(bare)
        ratios.append(2 * taken / (before + after))
        before = after
    return statistics.median(ratios), min(ratios), max(ratios)


def in_own_process(module: str, **options: object) -> Cost:
    """Run ``python -m module --case '{...}'`` and read the :class:`Cost` it prints as its last line."""
    command = [sys.executable, "-m", module, "--case", json.dumps(options)]
    finished = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    if finished.returncode:
        raise RuntimeError(f"{options} failed:\n{finished.stderr}")
    return Cost(**json.loads(finished.stdout.splitlines()[-1]))


def print_cost(cost: Cost) -> None:
    """The last line of a child process."""
    print(json.dumps(asdict(cost)))


def machine() -> str:
    """Hardware and versions, for the head of a table."""
    cpu = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else ():
        if line.startswith("model name"):
            cpu = line.partition(":")[2].strip()
            break
    return f"{cpu}, {torch.get_num_threads()} threads; Python {platform.python_version()}, torch {torch.__version__}"
