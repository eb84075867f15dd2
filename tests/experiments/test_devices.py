"""The same numbers on a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from captum_fam.embedding.ranks import Ranks
from captum_fam.experiments.evaluation import evaluate
from tests.experiments.runs import NAMES, make_protocol


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", NAMES)
def test_a_gpu_gives_the_table_of_the_cpu(name: str, tmp_path: Path) -> None:
    on_cpu = evaluate(make_protocol(name), tmp_path / "cpu", wrong=1)
    on_gpu = evaluate(make_protocol(name), tmp_path / "gpu", ranks=Ranks(device="cuda"), wrong=1)
    assert on_cpu is not None
    assert on_gpu is not None
    assert on_gpu.counts == on_cpu.counts
    for method, table in on_cpu.methods.items():
        for measure, result in table.items():
            assert on_gpu.methods[method][measure].value == pytest.approx(result.value, abs=2e-3, nan_ok=True)
