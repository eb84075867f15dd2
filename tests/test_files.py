from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from captum_fam._files import (
    check_same_settings,
    lock_folder,
    need,
    read_json,
    sha256_of,
    sha256_of_file,
    try_file,
    try_folder,
    versions,
    write_all_or_nothing,
    write_json,
)
from captum_fam._locks import scratch_folder


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


@pytest.mark.parametrize("name", [b"inv\xff\xfe.jpg", b"\xed\xa0\x80", "é\n\x1b[2J".encode()])
def test_any_file_name_comes_back_from_json_that_is_utf_8(name: bytes, tmp_path: Path) -> None:
    text = os.fsdecode(name)
    write_json(tmp_path / "x.json", {"files": [text], text: 1})
    content = json.loads((tmp_path / "x.json").read_bytes().decode("utf-8"))
    assert [os.fsencode(key) for key in (*content["files"], *list(content)[1:])] == [name, name]


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\x00" * 40, b"\xff", b"[" * 100_000])
def test_broken_json_is_named_with_what_to_do(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"run\.json is broken \(.*; delete it"):
        read_json(tmp_path / "run.json", "delete it")
    with pytest.raises(ValueError, match=r"run\.json is broken"):
        check_same_settings(tmp_path / "run.json", {"seed": 1}, "another run")


def test_a_folder_in_the_way_of_one_file_leaves_all_old_files(tmp_path: Path) -> None:
    _write(tmp_path, "old", "a.npz", "manifest.json")
    (tmp_path / "b.npz").mkdir()
    with pytest.raises(IsADirectoryError, match=r"b\.npz is a folder"):
        _write(tmp_path, "new", "a.npz", "b.npz", "manifest.json")
    assert (tmp_path / "a.npz").read_text() == (tmp_path / "manifest.json").read_text() == "old"
    assert not list(tmp_path.glob(".captum-fam*"))


def test_trying_leaves_nothing_and_names_what_is_in_the_way(tmp_path: Path) -> None:
    try_folder(tmp_path / "new" / "inner")
    try_file(tmp_path / "new" / "figure.png")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    for attempt in (try_folder, try_file):
        with pytest.raises(OSError, match=r"file/inner.* cannot be written: .*file is a file; choose another folder"):
            attempt(tmp_path / "file" / "inner" / "x")
    with pytest.raises(OSError, match="is a folder, where a file is to be written"):
        try_file(tmp_path)


_HOLD = """
import sys, time
from pathlib import Path
from captum_fam._files import lock_folder
from captum_fam._locks import scratch_folder
with lock_folder(sys.argv[1]), scratch_folder(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_folder_in_use_is_refused_by_its_owner_and_free_after_a_kill(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    owner = subprocess.Popen([sys.executable, "-c", _HOLD, str(folder)], stdout=subprocess.PIPE)
    try:
        assert owner.stdout is not None
        assert owner.stdout.readline() == b"held\n"
        with pytest.raises(OSError, match=rf"out is in use by process {owner.pid} on .* since 20.*{folder}"):
            lock_folder(folder).__enter__()
        # Writing one file is no work of hours, and leaves the scratch folder of the living process alone.
        _write(folder, "x", "other.txt")
        assert len(list(folder.glob(".captum-fam-*"))) == 1
    finally:
        owner.kill()
        owner.wait()
    with lock_folder(folder):
        assert sorted(path.name for path in folder.iterdir()) == [".captum-fam.lock", "other.txt"]
    assert [path.name for path in folder.iterdir()] == ["other.txt"]


def test_a_thread_locks_again_what_it_holds_and_another_does_not(tmp_path: Path) -> None:
    errors: list[Exception] = []

    def other() -> None:
        try:
            lock_folder(tmp_path / "out").__enter__()
        except OSError as error:
            errors.append(error)

    with lock_folder(tmp_path / "out"):
        with lock_folder(tmp_path / "out"), lock_folder(tmp_path / "out" / "..", holds=False):
            pass
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert len(errors) == 1
    assert list(tmp_path.iterdir()) == []  # nothing was written, and nothing is left


def test_a_forked_worker_does_not_keep_the_lock_of_a_dead_parent(tmp_path: Path) -> None:
    read, write = os.pipe()
    with lock_folder(tmp_path):
        child = os.fork()
        if not child:
            os.close(write)
            os.read(read, 1)  # until the parent closes the pipe
            os._exit(0)
    try:
        with lock_folder(tmp_path):
            assert (tmp_path / ".captum-fam.lock").is_file()
    finally:
        os.close(write)
        os.close(read)
        os.waitpid(child, 0)


def test_the_scratch_folder_of_a_dead_process_is_removed_by_the_next_lock(tmp_path: Path) -> None:
    (tmp_path / ".captum-fam-abc123").mkdir()
    (tmp_path / ".captum-fam-abc123" / "half.png").write_text("")
    with scratch_folder(tmp_path) as alive, lock_folder(tmp_path):
        assert [path for path in tmp_path.iterdir() if path.is_dir()] == [alive]


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
