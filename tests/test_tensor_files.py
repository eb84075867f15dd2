"""Files of tensors: complete, or named as damaged."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch

from captum_fam._tensor_files import is_intact, read_tensors


def test_a_whole_file_gives_its_tensors(tmp_path: Path) -> None:
    content = {"rows": torch.rand(7, 3), "items": [1, 2], "name": "é"}
    torch.save(content, tmp_path / "x.pt")
    for mmap in (False, True):
        found = read_tensors(tmp_path / "x.pt", "delete it", mmap=mmap)
        assert torch.equal(found.pop("rows"), content["rows"])
        assert found == {"items": [1, 2], "name": "é"}


@pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_named(share: float, tmp_path: Path) -> None:
    torch.save(torch.rand(500), tmp_path / "whole.pt")
    content = (tmp_path / "whole.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(content[: int(share * len(content))])
    assert not is_intact(tmp_path / "cut.pt")
    with pytest.raises(ValueError, match=r"cut\.pt is truncated or damaged; delete it"):
        read_tensors(tmp_path / "cut.pt", "delete it")


def test_a_flipped_bit_and_a_block_of_zeros_are_found(tmp_path: Path) -> None:
    torch.save(torch.full((4096,), 0.5), tmp_path / "whole.pt")
    content = (tmp_path / "whole.pt").read_bytes()
    middle = len(content) // 2
    for damaged in (
        content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
        content[:4096] + bytes(4096) + content[8192:],
    ):
        assert len(damaged) == len(content)
        (tmp_path / "damaged.pt").write_bytes(damaged)
        assert not is_intact(tmp_path / "damaged.pt")


def test_a_file_that_would_run_code_is_refused_without_the_advice_to_let_it(tmp_path: Path) -> None:
    class Runs:
        def __reduce__(self) -> object:
            return (Path.touch, (tmp_path / "ran",))

    torch.save(Runs(), tmp_path / "evil.pt", pickle_module=pickle)
    with pytest.raises(ValueError, match=r"evil\.pt holds no tensors .*; delete it") as caught:
        read_tensors(tmp_path / "evil.pt", "delete it")
    assert "weights_only" not in str(caught.value)
    assert not (tmp_path / "ran").exists()
