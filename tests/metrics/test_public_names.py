from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from captum_fam import metrics


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    root = str(Path(__file__).resolve().parents[2])
    environment = {**os.environ, "PYTHONPATH": root}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=120)


@pytest.mark.slow
def test_functions_need_neither_torchmetrics_nor_scipy_and_metrics_say_how_to_get_them() -> None:
    code = """
import sys
sys.modules["torchmetrics"] = sys.modules["scipy"] = None
import torch
from captum_fam import metrics
print(metrics.energy_proportion(torch.eye(2)[None], torch.tensor([[0, 0, 1, 1]]), (2, 2)).item())
for use in (lambda: metrics.BoxIoU, lambda: metrics.box_from_map(torch.eye(2))):
    try:
        use()
    except ImportError as error:
        print(error)
"""
    result = run_python(code)
    assert result.returncode == 0, result.stderr
    energy, no_metrics, no_scipy = result.stdout.strip().splitlines()
    assert energy == "0.5"
    assert "torchmetrics" in no_metrics
    assert "scipy" in no_scipy
    for message in (no_metrics, no_scipy):
        assert "captum-fam[eval]" in message


@pytest.mark.slow
def test_functions_import_neither_torchmetrics_nor_scipy() -> None:
    names = ", ".join(name for name in metrics.__all__ if name.islower() or name.isupper())
    code = f"import sys\nfrom captum_fam.metrics import {names}\nprint({{'torchmetrics', 'scipy'}} & {{*sys.modules}})"
    result = run_python(code)
    assert result.stdout.strip() == "set()", result.stderr


def test_unknown_names_are_unknown() -> None:
    with pytest.raises(AttributeError, match="Sharpness"):
        metrics.Sharpness  # type: ignore[attr-defined]  # noqa: B018


@pytest.mark.parametrize("name", metrics.__all__)
def test_every_public_name_is_there(name: str) -> None:
    # A module of this name would hide the function.
    assert not isinstance(getattr(metrics, name), ModuleType)
