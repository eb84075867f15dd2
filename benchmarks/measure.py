"""Time and memory of a call against those of a bare forward pass."""

from __future__ import annotations

import json
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path

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
    lower, median, upper = statistics.quantiles(ratios)
    return median, lower, upper


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
    return f"{cpu}, threads: {torch.get_num_threads()}; Python {platform.python_version()}, torch {torch.__version__}"
