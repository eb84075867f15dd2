"""Stage ``moco``: `captum-fam train contrastive moco` until its time is over."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

from benchmarks.gpu_stages.report import Case, Report

_ROOT = Path(__file__).parents[2]
_SMALL = (
    "--model", "conv4net", "--epochs", "2", "--batch-size", "16", "--norm-groups", "1", "--k", "5", "--size", "32",
    "--hold-out", "2",
)  # fmt: skip
_FULL = (
    "--model", "npid_resnet18", "--epochs", "200", "--batch-size", "256", "--k", "20", "--size", "112",
    "--stored-size", "128", "--learning-rate", "0.06", "--key-momentum", "0.99", "--precision", "bfloat16",
    "--num-workers", "12",
)  # fmt: skip


def run(case: Case, report: Report) -> None:
    """Run the command, end it when the time is over, and read its log: every epoch has a line.

    Args:
        case: what the stage is told.
        report: the report of the stage.

    Raises:
        RuntimeError: if the command ends with an error.
    """
    data = "scenes:160" if case.is_small else case.cub
    out = Path(case.folder).absolute() / "run"
    words = ["train", "contrastive", "moco", *(_SMALL if case.is_small else _FULL)]
    words += ["--data", data, "--out", str(out), "--device", case.device, "--quiet"]
    report.fact(command=f"captum-fam {' '.join([*words[:-5], '--device', case.device])}", data=Path(data).name)
    process = subprocess.Popen(
        [sys.executable, "-m", "captum_fam", *words],
        cwd=_ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        output, _ = process.communicate(timeout=max(1.0, report.left - 2))
    except subprocess.TimeoutExpired:
        process.kill()
        output, _ = process.communicate()
        report.content.update(state="stopped", stopped_before="the last epoch")
    report.fact(code=process.returncode, output=output[-2000:])
    log = out / "log.csv"
    if log.exists():
        with log.open(newline="", encoding="utf-8") as file:
            for line in csv.DictReader(file):
                report.row(**{key: _number(value) for key, value in line.items()})
    if process.returncode and report.content["state"] == "running":
        raise RuntimeError(f"captum-fam train contrastive moco ended with code {process.returncode}")


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text
