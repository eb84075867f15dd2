"""Time and memory of a call: CUDA events and the allocator's peak on a GPU, a clock on a CPU."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Timing:
    """Milliseconds of a call: median, least and most; and its peak of memory, None on a CPU."""

    ms: float
    least: float
    most: float
    peak_mib: float | None


def measure(call: Callable[[], object], device: str, repetitions: int = 7, seconds: float = 2.0) -> Timing:
    """Time a call several times, after one call that is not counted.

    Args:
        call: the call.
        device: ``"cuda"`` or ``"cpu"``.
        repetitions: calls at most. Default: 7.
        seconds: after this time no further call begins, but three calls are made in any case. Default: 2.

    Returns:
        The timing. The peak counts what the call allocated beyond what was allocated before.
    """
    on_gpu = torch.device(device).type == "cuda"
    call()
    peak = None
    if on_gpu:
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        torch.cuda.synchronize()
        peak = (torch.cuda.max_memory_allocated() - before) / 2**20
    taken: list[float] = []
    start = time.monotonic()
    while len(taken) < repetitions and (len(taken) < 3 or time.monotonic() - start < seconds):
        taken.append(_by_events(call) if on_gpu else _by_clock(call))
    return Timing(statistics.median(taken), min(taken), max(taken), peak)


def _by_events(call: Callable[[], object]) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    call()
    end.record()
    torch.cuda.synchronize()
    return float(begin.elapsed_time(end))


def _by_clock(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return 1000 * (time.perf_counter() - start)
