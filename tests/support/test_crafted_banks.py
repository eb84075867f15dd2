"""Broken and crafted bank files: one error that names the file, and neither seconds nor gigabytes."""

from __future__ import annotations

import json
import resource
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from captum_fam.support import MemoryBank
from tests.support.pictures import Pictures, build

safetensors = pytest.importorskip("safetensors.torch", reason="a bank on disk is a safetensors file")

SETTINGS = {
    "class_names": ["a", "b"],
    "k": 2,
    "temperature": 0.1,
    "similarity": "cosine",
    "neighbors": "predicted",
    "weights": None,
}
CONTENT = {"settings": SETTINGS, "skipped": {"4": "broken"}}


def write(path: Path, header: str | dict[str, Any] | None = None, **changes: Tensor | None) -> Path:
    """A bank file of three rows, of which parts are replaced, or left out as None."""
    tensors = {"embeddings": torch.eye(3), "labels": torch.tensor([0, 1, 1]), "items": torch.tensor([0, 2, 3])}
    tensors = {name: tensor for name, tensor in {**tensors, **changes}.items() if tensor is not None}
    content = CONTENT if header is None else header
    if isinstance(content, dict):
        sums = {
            name: zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().tobytes()) for name, tensor in tensors.items()
        }
        content = {"checksums": sums, **content}
    text = content if isinstance(content, str) else json.dumps(content)
    safetensors.save_file(tensors, path, {"captum-fam memory bank": text})
    return path


def settings(**changes: Any) -> dict[str, Any]:
    return {**CONTENT, "settings": {**SETTINGS, **changes}}


def without(name: str) -> dict[str, Any]:
    return {**CONTENT, "settings": {key: value for key, value in SETTINGS.items() if key != name}}


def test_the_file_that_the_others_are_made_of_is_a_bank(tmp_path: Path) -> None:
    bank = MemoryBank.load(write(tmp_path / "bank.safetensors"))
    assert bank.class_names == ("a", "b")
    assert bank.skipped == {4: "broken"}
    assert bank.items.tolist() == [0, 2, 3]


HEADERS: dict[str, Any] = {
    "list": "[]",
    "null": "null",
    "number": "5",
    "no JSON": "{",
    "not a text": "\x00\xff",
    "unfinished text": '"' + '\\"' * 500_000,
    "deep lists": "[" * 100_000,
    "deep objects": '{"a":' * 100_000,
    "many lists": "[" + "[]," * 1_000_000 + "[]]",
    "a number of many digits": '{"settings": {}, "skipped": ' + "9" * 100_000 + "}",
    "no settings": {"skipped": {}},
    "no skipped": {"settings": SETTINGS},
    "more": {**CONTENT, "more": 1},
    "settings are a list": {**CONTENT, "settings": []},
    "settings are null": {**CONTENT, "settings": None},
    "no k": without("k"),
    "no class names": without("class_names"),
    "another setting": settings(backend="faiss"),
    "an argument": settings(embeddings=[[1.0]]),
    "k is a text": settings(k="5"),
    "k is a fraction": settings(k=5.0),
    "k is true": settings(k=True),
    "k is zero": settings(k=0),
    "temperature too small": settings(temperature=1e-320),
    "temperature zero": settings(temperature=0),
    "temperature NaN": settings(temperature=float("nan")),
    "temperature infinite": settings(temperature=float("inf")),
    "temperature is a text": settings(temperature="0.1"),
    "an unknown rule": settings(neighbors="some"),
    "a rule that is a list": settings(neighbors=["all"]),
    "a similarity that is a number": settings(similarity=3),
    "an unknown similarity": settings(similarity="no such"),
    "names are a text": settings(class_names="ab"),
    "names are numbers": settings(class_names=[1, 2]),
    "no names": settings(class_names=[]),
    "fewer names than labels": settings(class_names=["a"]),
    "checksums are a list": {**CONTENT, "checksums": []},
    "other checksums": {**CONTENT, "checksums": {"embeddings": 1, "labels": 2, "items": 3}},
    "weights are a number": settings(weights=5),
    "skipped is a list": {**CONTENT, "skipped": [4]},
    "skipped without reason": {**CONTENT, "skipped": {"4": None}},
    "skipped is no number": {**CONTENT, "skipped": {"four": "broken"}},
    "skipped is negative": {**CONTENT, "skipped": {"-4": "broken"}},
    "skipped is another digit": {**CONTENT, "skipped": {"\u0664": "broken"}},
    "skipped is too large": {**CONTENT, "skipped": {"9" * 5000: "broken"}},
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_header_that_no_bank_has_is_refused(name: str, tmp_path: Path) -> None:
    path = write(tmp_path / "bank.safetensors", HEADERS[name])
    with pytest.raises(ValueError, match=r"bank\.safetensors: ") as error:
        MemoryBank.load(path)
    assert type(error.value) is ValueError
    assert len(str(error.value)) < 1000
    assert str(error.value).isprintable()


TENSORS: dict[str, dict[str, Tensor | None]] = {
    "a label of 2 to the 40": {"labels": torch.tensor([0, 1, 2**40])},
    "a negative label": {"labels": torch.tensor([0, 1, -1])},
    "labels of another type": {"labels": torch.tensor([0, 1, 1], dtype=torch.int32)},
    "labels that are numbers": {"labels": torch.tensor([0.0, 1.0, 1.0])},
    "labels of another length": {"labels": torch.tensor([0, 1])},
    "labels of two dimensions": {"labels": torch.tensor([[0], [1], [1]])},
    "no labels": {"labels": None},
    "no items": {"items": None},
    "another tensor": {"more": torch.eye(2)},
    "items twice": {"items": torch.tensor([0, 2, 2])},
    "items that fall": {"items": torch.tensor([0, 3, 2])},
    "items that overflow": {"items": torch.tensor([0, 2**62, -(2**62)])},
    "a negative item": {"items": torch.tensor([-1, 2, 3])},
    "items of another length": {"items": torch.tensor([0, 2, 3, 4])},
    "no rows": {"embeddings": torch.empty(0, 3), "labels": torch.empty(0).long(), "items": torch.empty(0).long()},
    "no features": {"embeddings": torch.empty(3, 0)},
    "one dimension": {"embeddings": torch.ones(3)},
    "no dimension": {"embeddings": torch.tensor(1.0)},
    "three dimensions": {"embeddings": torch.ones(3, 2, 2)},
    "fp8": {"embeddings": torch.eye(3).to(torch.float8_e4m3fn)},
    "whole numbers": {"embeddings": torch.eye(3).long()},
    "NaN": {"embeddings": torch.full((3, 3), torch.nan)},
    "infinity": {"embeddings": torch.full((3, 3), torch.inf)},
}


@pytest.mark.parametrize("name", TENSORS)
def test_tensors_that_no_bank_has_are_refused(name: str, tmp_path: Path) -> None:
    path = write(tmp_path / "bank.safetensors", **TENSORS[name])
    with pytest.raises(ValueError, match=r"bank\.safetensors: .*(make the bank again|no memory bank)") as error:
        MemoryBank.load(path)
    assert type(error.value) is ValueError


def _huge_header(whole: bytes) -> bytes:
    """A header that is as large as it says, with class names that would take gigabytes."""
    names = b'"' + b'\\"a\\",' * 10_000_000 + b'"'
    header = b'{"__metadata__":{"captum-fam memory bank":' + names + b"}}"
    return struct.pack("<Q", len(header)) + header


BYTES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda whole: b"",
    "five bytes": lambda whole: whole[:5],
    "cut in the header": lambda whole: whole[:100],
    "cut in the rows": lambda whole: whole[:-1],
    "more than the rows": lambda whole: whole + b"more",
    "a header of 2 to the 60": lambda whole: struct.pack("<Q", 2**60) + whole[8:],
    "a huge header": _huge_header,
    "a page": lambda whole: b"<!DOCTYPE html><html><body>Not found</body></html>",
    "a pointer": lambda whole: b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64,
    "another dtype": lambda whole: whole.replace(b'"F32"', b'"X32"'),
    "a control character": lambda whole: whole.replace(b"F32", b"\x1b[2"),
}


@pytest.mark.parametrize("name", BYTES)
def test_a_file_that_is_broken_is_refused(name: str, tmp_path: Path) -> None:
    path = write(tmp_path / "bank.safetensors")
    path.write_bytes(BYTES[name](path.read_bytes()))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=r"bank\.safetensors: .*make the bank again") as error:
        MemoryBank.load(path)
    assert type(error.value) is ValueError
    assert str(error.value).isprintable()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # kB


def test_every_byte_of_the_header_may_be_wrong(tmp_path: Path) -> None:
    whole = write(tmp_path / "bank.safetensors").read_bytes()
    path = tmp_path / "changed.safetensors"
    refused = 0
    for position in range(0, len(whole) - 84, 3):  # the tensors at the end hold any number
        path.write_bytes(whole[:position] + b"\x9d" + whole[position + 1 :])
        try:
            MemoryBank.load(path)
        except ValueError as error:
            assert "changed.safetensors: " in str(error)  # noqa: PT017 - some changes are harmless
            refused += 1
    assert refused > 100


def test_names_and_options_that_do_not_fit_the_file_name_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "bank.safetensors")
    with pytest.raises(ValueError, match=r"bank\.safetensors: .*class_names"):
        MemoryBank.load(path, class_names=["a"])
    for missing in (tmp_path / "no.safetensors", tmp_path):
        with pytest.raises(FileNotFoundError, match="no such memory bank"):
            MemoryBank.load(missing)


def test_control_characters_of_a_file_are_not_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = {"settings": {**SETTINGS, "class_names": ["a", "\x1b[2Jb"]}, "skipped": {"4": "\x1b[2J broken"}}
    bank = MemoryBank.load(write(tmp_path / "bank.safetensors", content, labels=torch.tensor([0, 0, 0])))
    assert bank.class_names == ("a", "\x1b[2Jb")
    with pytest.raises(ValueError, match="no row of class") as error:
        bank.using(neighbors="whole-class").compare(torch.eye(3), target=1)
    assert str(error.value).isprintable()
    with pytest.raises(ValueError, match="settings") as error:
        MemoryBank.load(write(tmp_path / "bank.safetensors", {**CONTENT, "settings": {"\x1b[2J": 1}}))
    assert str(error.value).isprintable()


def test_a_bank_of_too_long_names_is_not_written(tmp_path: Path) -> None:
    bank = MemoryBank(torch.eye(2), [0, 1], ["a" * 2**24, "b"])
    with pytest.raises(ValueError, match=r"bank\.safetensors: class names .* shorter names"):
        bank.save(tmp_path / "bank.safetensors")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("damage", [b"", b"no block", None])
def test_blocks_of_an_unfinished_bank_that_are_damaged_are_made_again_or_named(
    damage: bytes | None, tmp_path: Path
) -> None:
    path = tmp_path / "bank.safetensors"
    with pytest.raises(KeyboardInterrupt):
        build(Pictures(dies_at=30), path=path)
    block = sorted((tmp_path / "bank.safetensors.parts").iterdir())[1]
    block.write_bytes(block.read_bytes()[:-50] if damage is None else damage)
    bank = build(Pictures(), path=path)
    assert torch.equal(bank.embeddings, build(Pictures()).embeddings)


def test_blocks_of_something_else_are_named(tmp_path: Path) -> None:
    path = tmp_path / "bank.safetensors"
    with pytest.raises(KeyboardInterrupt):
        build(Pictures(dies_at=30), path=path)
    block = sorted((tmp_path / "bank.safetensors.parts").iterdir())[0]
    torch.save({"weight": torch.ones(3)}, block)
    with pytest.raises(ValueError, match=r"bank\.safetensors\.parts.*(delete|remove)"):
        build(Pictures(), path=path)
