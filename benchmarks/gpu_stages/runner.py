"""Runs the stages one after another, each in a process of its own that is ended when it takes too long."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.gpu_stages import Stage
from benchmarks.gpu_stages.report import Case, read_json
from benchmarks.pieces import write_json

FINISHED = ("done", "stopped")
# A stage looks at its clock between two steps: this long may a step take beyond the budget.
_GRACE = 15.0
_ROOT = Path(__file__).parents[2]


def run_stages(
    stages: Sequence[Stage],
    out: Path,
    minutes: float,
    *,
    device: str,
    size: str,
    data_pack: Path | None,
    grace: float = _GRACE,
) -> dict[str, dict[str, Any]]:
    """Run the stages that are not finished in ``out``.

    The time that is left is divided among the stages that are left by their shares, so that a stage that ends early
    leaves its time to the next ones.

    Args:
        stages: the stages.
        out: folder of the results: ``STAGE.json`` and ``STAGE.log``.
        minutes: minutes for all stages.
        device: ``"cuda"`` or ``"cpu"``.
        size: ``"full"`` or ``"small"``.
        data_pack: folder of packed data.
        grace: seconds that a stage may take beyond its budget before it is ended. Default: 15.

    Returns:
        The content of every stage's JSON file, by stage.
    """
    end = time.monotonic() + 60 * minutes
    settings = {"device": device, "size": size}
    done = {}
    for stage in stages:
        content = read_json(out / f"{stage.name}.json")
        if content.get("state") in FINISHED and {key: content.get(key) for key in settings} == settings:
            done[stage.name] = content
    left = [stage for stage in stages if stage.name not in done]
    for name in done:
        print(f"{name}: finished before", flush=True)
    for number, stage in enumerate(left):
        budget = budget_of(left[number:], end - time.monotonic())
        if budget < 1:
            print(f"{stage.name}: no time is left", flush=True)
            continue
        case = Case(device, size, str(out / stage.name), None if data_pack is None else str(data_pack))
        done[stage.name] = _run_one(stage, budget, min(grace, max(1.0, end - time.monotonic() - budget)), out, case)
    return done


def budget_of(stages: Sequence[Stage], seconds: float) -> float:
    """The seconds of the first of the stages that are left.

    Args:
        stages: the stages that are left.
        seconds: the time that is left for all of them.
    """
    return min(stages[0].most, seconds * stages[0].share / sum(stage.share for stage in stages))


def _run_one(stage: Stage, budget: float, grace: float, out: Path, case: Case) -> dict[str, Any]:
    path = out / f"{stage.name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    # A training goes on with what it finds, and its time would be that of a part.
    shutil.rmtree(case.folder, ignore_errors=True)
    words = [stage.module, stage.name, str(budget), str(path), json.dumps(asdict(case))]
    start = time.monotonic()
    print(f"{stage.name}: at most {budget:.0f} s ...", end=" ", flush=True)
    with (out / f"{stage.name}.log").open("w", encoding="utf-8") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.gpu_stages.child", *words],
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=_ROOT,
            # A group of its own, which ends with its children: torchrun and pytest start processes too.
            start_new_session=True,
        )
        try:
            process.wait(budget + grace)
            ended = None
        except subprocess.TimeoutExpired:
            ended = "killed"
        finally:
            _end_group(process)
    content = read_json(path)
    if content.get("state", "running") == "running":
        content = {"stage": stage.name, "device": case.device, "size": case.size, "facts": {}, "rows": []} | content
        log_tail = (out / f"{stage.name}.log").read_text(encoding="utf-8", errors="replace")[-2000:]
        content |= {"state": ended or "failed", "seconds": round(time.monotonic() - start, 2), "log": log_tail}
        content |= {} if ended else {"error": f"the process ended with code {process.returncode}"}
        write_json(path, content)
    print(f"{content['state']} after {time.monotonic() - start:.0f} s, {len(content['rows'])} rows", flush=True)
    return content


def _end_group(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
