from __future__ import annotations

import csv
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import distributed

from captum_fam.models import read_state_dict

pytest.importorskip("safetensors", reason="checkpoints are safetensors")
pytest.importorskip("pytorch_metric_learning", reason="the losses are of pytorch-metric-learning")

_JOB = Path(__file__).with_name("job.py")


@pytest.mark.skipif(not distributed.is_available(), reason="torch was built without distributed")
def test_two_processes_train_as_one_does(tmp_path: Path) -> None:
    runpy.run_path(str(_JOB))["run"](tmp_path / "one")
    root = Path(__file__).resolve().parents[2]
    launch = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(_JOB), str(tmp_path / "two")]
    done = subprocess.run(
        [sys.executable, "-m", *launch],
        env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for file in ("few-shot/last", "metric/last", "metric/last-head"):
        one, two = (read_state_dict(tmp_path / folder / f"{file}.safetensors") for folder in ("one", "two"))
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)
    for kind in ("few-shot", "metric"):
        logs = []
        for folder in ("one", "two"):
            with (tmp_path / folder / kind / "log.csv").open(encoding="utf-8") as file:
                logs.append([float(row["loss"]) for row in csv.DictReader(file)])
        assert logs[0] == pytest.approx(logs[1], rel=1e-4)
        assert len(logs[0]) == 2
