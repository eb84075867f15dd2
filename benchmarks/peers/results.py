"""What the rows of the comparison measure: maps of mosaics, and what they cost."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import redirect_stderr
from io import StringIO
from statistics import median
from typing import Any, TypedDict

import torch
from torch import Tensor

from benchmarks.measure import cpu_seconds, paired_seconds, peak_tensor_mib
from benchmarks.peers.mosaics import Mosaics
from benchmarks.peers.question import Question, Row, Subject, similarity
from captum_fam.metrics import mosaic_auroc, mosaic_energy, mosaic_hit

MEASURES = {"energy": mosaic_energy, "hit": mosaic_hit, "AUROC": mosaic_auroc}
ROUNDS = 5


class Result(TypedDict):
    """The numbers of a row on one network.

    ``mosaics`` has for each mosaic the values of its maps by measure, and ``coverage`` and ``peak`` of each map.
    ``seconds``, ``ratio``, ``mib`` and ``mib_ratio`` are of one map of one image; ``four_ratio`` is of the maps of all
    four classes of an image, None for a slow method. ``error`` says why there are no numbers.
    """

    mosaics: list[dict[str, list[float]]]
    seconds: float
    ratio: float
    four_ratio: float | None
    mib: float
    mib_ratio: float
    error: str


def explain_mosaic(row: Row, mosaics: Mosaics, number: int) -> dict[str, list[float]]:
    """The measures of the maps of one mosaic.

    Args:
        row: the method.
        mosaics: the mosaics.
        number: of the mosaic. A slow method explains one class of it, the next class in every next mosaic.
    """
    n_cells = mosaics.grid**2
    targets = (number % n_cells,) if row.slow else tuple(range(n_cells))
    question = mosaics.question(number, targets, row.contrast)
    return measured(row.explain(mosaics.subject, question), mosaics.embedding(number), question, mosaics.grid)


def measured(maps: Tensor, embedding: Tensor, question: Question, grid: int) -> dict[str, list[float]]:
    """The measures of maps of one mosaic.

    Args:
        maps: ``(T, 1, h, w)``.
        embedding: of the mosaic, ``(1, J)``.
        question: the mosaic and its T classes.
        grid: cells per side.
    """
    size = (question.image.shape[2], question.image.shape[3])
    cells = torch.tensor(question.targets)
    values = {name: measure(maps, cells, size, grid).tolist() for name, measure in MEASURES.items()}
    scores = similarity(embedding.double(), question.directions.double())
    values["coverage"] = (maps.double().flatten(1).sum(1) / scores).tolist()
    values["peak"] = maps.flatten(1).amax(1).tolist()
    return values


def run_row(row: Row, mosaics: Mosaics, count: int, budget: float) -> Result:
    """Explain mosaics until the budget is spent, one at least, then measure time and memory.

    Args:
        row: the method.
        mosaics: the mosaics.
        count: how many mosaics at most.
        budget: seconds for the mosaics.
    """
    found: list[dict[str, list[float]]] = []
    # Some packages show a progress bar for each map.
    with redirect_stderr(StringIO()):
        start = time.perf_counter()
        cost = _slow_cost(row, mosaics, found) if row.slow else {}
        for number in range(len(found), count):
            if found and time.perf_counter() - start > budget:
                break
            found.append(explain_mosaic(row, mosaics, number))
        cost = cost or _cost(row, mosaics)
    return Result(mosaics=found, error="", **cost)


def _bare(subject: Subject, question: Question) -> Callable[[], object]:
    def bare() -> Tensor:
        with torch.no_grad():
            return subject.model(question.image)

    return bare


def _cost(row: Row, mosaics: Mosaics) -> dict[str, Any]:
    """Cost of one map, and of the maps of all four classes, over a bare pass of the image."""
    subject = mosaics.subject
    one, four = (mosaics.question(0, targets, row.contrast) for targets in ((0,), tuple(range(mosaics.grid**2))))
    bare = _bare(subject, one)
    seconds = paired_seconds(lambda: row.explain(subject, one), bare, ROUNDS)
    several = paired_seconds(lambda: row.explain(subject, four), bare, ROUNDS, warm=False)
    mib = peak_tensor_mib(lambda: row.explain(subject, one))
    return {
        "seconds": median(taken for taken, _ in seconds),
        "ratio": median(taken / beside for taken, beside in seconds),
        "four_ratio": median(taken / beside for taken, beside in several),
        "mib": mib,
        "mib_ratio": mib / peak_tensor_mib(bare),
    }


def _slow_cost(row: Row, mosaics: Mosaics, found: list[dict[str, list[float]]]) -> dict[str, Any]:
    """Cost of a method of many passes: its first mosaic is measured, so that no call is made for the cost alone."""
    bare = _bare(mosaics.subject, mosaics.question(0, (0,), row.contrast))
    seconds: list[float] = []

    def call() -> None:
        seconds.append(cpu_seconds(lambda: found.append(explain_mosaic(row, mosaics, 0))))

    bare()
    before = cpu_seconds(bare)
    mib = peak_tensor_mib(call)
    beside = (before + cpu_seconds(bare)) / 2
    return {
        "seconds": seconds[0],
        "ratio": seconds[0] / beside,
        "four_ratio": None,
        "mib": mib,
        "mib_ratio": mib / peak_tensor_mib(bare),
    }


def failed(error: Exception) -> Result:
    """The result of a row that raises.

    Args:
        error: what it raised.
    """
    nan = math.nan
    words = f"{type(error).__name__}: {error}".splitlines()[0][:120]
    return Result(mosaics=[], seconds=nan, ratio=nan, four_ratio=None, mib=nan, mib_ratio=nan, error=words)
