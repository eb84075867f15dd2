from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path

import pytest
import torch

from captum_fam._files import (
    check_same_settings,
    need,
    sha256_of,
    sha256_of_file,
    versions,
    write_all_or_nothing,
    write_json,
)


def _write(folder: Path, text: str, *names: str, fails: bool = False) -> None:
    with write_all_or_nothing(folder) as scratch:
        for name in names:
            (scratch / name).write_text(text)
        if fails:
            raise OSError("full")


def test_a_failing_write_leaves_the_old_files(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("old")
    with pytest.raises(OSError, match="full"):
        _write(tmp_path, "new", "a.txt", "b.txt", fails=True)
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "old"


def test_other_files_stay_and_missing_folders_are_made(tmp_path: Path) -> None:
    for name in ("one.txt", "two.txt"):
        _write(tmp_path / "deep" / "folder", name, name)
    assert sorted(path.name for path in (tmp_path / "deep/folder").iterdir()) == ["one.txt", "two.txt"]


def test_files_are_flushed_before_they_move_and_the_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    fsync, replace = os.fsync, os.replace

    def flushing(descriptor: int) -> None:
        events.append(f"flush {Path(os.readlink(f'/proc/self/fd/{descriptor}')).name}")
        fsync(descriptor)

    def moving(source: Path, target: Path) -> None:
        events.append(f"move {target.name}")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", flushing)
    monkeypatch.setattr(os, "replace", moving)
    _write(tmp_path, "new", "manifest.json", "a.bin", "z.bin")
    names = ["a.bin", "z.bin", "manifest.json"]
    flushed, moved = [f"flush {name}" for name in names], [f"move {name}" for name in names]
    assert events == [*flushed, *moved, f"flush {tmp_path.name}"]


def test_a_crash_between_two_moves_leaves_no_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write(tmp_path, "old", "manifest.json", "a.bin")

    def dies(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", dies)
    with pytest.raises(KeyboardInterrupt):
        _write(tmp_path, "new", "manifest.json", "a.bin")
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]


def test_a_folder_takes_the_settings_it_has_and_no_others(tmp_path: Path) -> None:
    path = tmp_path / "run" / "run.json"
    check_same_settings(path, {"seed": 1, "name": "é"}, "another run")
    check_same_settings(path, {"seed": 1, "name": "é"}, "another run")
    with pytest.raises(ValueError, match=r"another run .*seed was 1, now 2; steps was None, now 3"):
        check_same_settings(path, {"seed": 2, "name": "é", "steps": 3}, "another run")
    assert json.loads(path.read_text("utf-8")) == {"seed": 1, "name": "é"}


def test_json_is_indented_utf_8(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"name": "é"})
    assert (tmp_path / "x.json").read_bytes() == '{\n  "name": "é"\n}\n'.encode()


def test_a_hash_tells_values_types_shapes_and_order_apart() -> None:
    tensor = torch.arange(6.0).reshape(2, 3)
    different = [
        (tensor,),
        (tensor.T,),
        (tensor.reshape(3, 2),),
        (tensor.double(),),
        (tensor + 1,),
        (tensor.bfloat16(),),
        (torch.tensor(True),),
        ("a", tensor),
        (tensor, "a"),
        ("ab", "c"),
        ("a", "bc"),
        (),
    ]
    hashes = [sha256_of(*parts) for parts in different]
    assert len(set(hashes)) == len(different)
    assert all(len(found) == 64 for found in hashes)
    # Strides do not count.
    assert sha256_of(tensor.T) == sha256_of(tensor.T.contiguous())


def test_the_hash_of_a_file_is_that_of_its_bytes(tmp_path: Path) -> None:
    content = os.urandom(3_000_000)
    (tmp_path / "file").write_bytes(content)
    assert sha256_of_file(tmp_path / "file") == hashlib.sha256(content).hexdigest()


def test_versions_are_those_that_a_result_depends_on() -> None:
    found = versions()
    assert found.keys() == {"captum-fam", "captum", "torch", "python"}
    assert found["torch"].split("+")[0] == torch.__version__.split("+")[0]


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    assert need("json.decoder", extra="eval", purpose="a map") is sys.modules["json.decoder"]
    with pytest.raises(ImportError, match=r'a map needs nowhere: pip install "captum-fam\[eval\]"'):
        need("nowhere.inside", extra="eval", purpose="a map")
    # A module of a package that is missing may still be in memory.
    monkeypatch.setitem(sys.modules, "json", None)
    with pytest.raises(ImportError, match="a map needs json"):
        need("json.decoder", extra="eval", purpose="a map")
