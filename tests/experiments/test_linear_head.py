"""Reading a head: only finite floating-point numbers of fitting shapes."""

from __future__ import annotations

import pytest
import torch

from captum_fam.experiments.linear_head import load_head


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"weight": torch.full((2, 3), torch.nan)}, "hold NaN or inf in weight"),
        ({"weight": torch.ones(2, 3).long()}, "1 of another kind: weight torch.int64 instead of torch.float32"),
        ({"weight": torch.ones(2, 3), "bias": torch.ones(3)}, r"bias \(3,\) instead of \(2,\)"),
        ({"weight": torch.ones(3)}, "expected the state dict of a torch.nn.Linear"),
    ],
)
def test_a_head_that_cannot_be_right_is_refused(tmp_path, state, message):
    torch.save(state, tmp_path / "head.pt")
    with pytest.raises(ValueError, match=rf"^head .*head\.pt: .*{message}"):
        load_head(tmp_path / "head.pt")


def test_a_head_is_read_from_beside_what_a_training_stored(tmp_path):
    head = torch.nn.Linear(3, 2)
    torch.save({"state_dict": head.state_dict(), "path": tmp_path}, tmp_path / "head.pt")
    assert torch.equal(load_head(tmp_path / "head.pt").weight, head.weight)
