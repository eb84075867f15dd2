"""Stage ``ranks``: one process of torchrun that exchanges values by nccl; by gloo on a CPU."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

from benchmarks.gpu_stages.report import Case, Report

_ROOT = Path(__file__).parents[2]


def run(case: Case, report: Report) -> None:
    """Start the process, and take the facts that it prints.

    Args:
        case: what the stage is told.
        report: the report of the stage.

    Raises:
        RuntimeError: if the process ends with an error.
    """
    folder = Path(case.folder).absolute()
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1", "-m"]
    command += ["benchmarks.gpu_stages.one_rank_work", json.dumps(asdict(replace(case, folder=str(folder))))]
    try:
        ran = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, timeout=max(5.0, report.left))
    except subprocess.TimeoutExpired:
        report.finish(state="stopped", stopped_before="the end of the process")
        return
    facts = folder / "facts.jsonl"
    for line in facts.read_text(encoding="utf-8").splitlines() if facts.exists() else ():
        report.row(**json.loads(line))
    report.fact(code=ran.returncode, output=(ran.stdout + ran.stderr)[-2000:])
    if ran.returncode:
        raise RuntimeError(f"the process of torchrun ended with code {ran.returncode}")
