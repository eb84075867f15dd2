"""What is refused is refused before any work: nothing is left, and the corrected command runs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from captum_fam._files import lock_folder
from captum_fam.cli.main import main

COMMON = ["--model", "demo", "--data", "scenes:96", "--size", "48", "--device", "cpu", "--quiet"]
FEW_SHOT = ["evaluate", "few-shot", *COMMON, "--episodes", "3", "--way", "3", "--query", "2", "--examples", "0"]
FEW_SHOT += ["--methods", "fam,uniform"]


def code_of(words: list[str]) -> int:
    try:
        return main(words)
    except SystemExit as ended:
        return int(str(ended.code))


@pytest.mark.parametrize(
    "words",
    [
        ["--similarity", "nope"],
        ["--way", "1000"],
        ["--way", "0"],
        ["--shot", "0"],
        ["--query", "50"],
        ["--threshold", "nan"],
        ["--threshold", "5"],
        ["--seed", "-1"],
        ["--num-workers", "-1"],
        ["--batch-size", "0"],
        ["--episodes", "-1"],
        ["--methods", "fam[normalization=x]"],
        ["--methods", "fam[speed=3]"],
        ["--methods", "fam[layers=rest.nowhere]"],
        ["--methods", "gradcam"],
        ["--measures", "iou"],
        ["--measures", "localization", "--steps", "0"],
        ["--data", "os:getcwd"],
        ["--model", "os:getcwd"],
        ["--examples", "-1"],
    ],
)
def test_a_refused_option_leaves_no_folder(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert code_of([*FEW_SHOT, "--out", str(tmp_path / "out"), *words]) == 2
    assert list(tmp_path.iterdir()) == []
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("captum-fam")
    assert "error: " in error


def test_a_class_that_is_too_small_only_without_its_broken_image_leaves_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from captum_fam.experiments.data.load import ScenesWithBoxes
    from captum_fam.images import UnreadableImageError

    read = ScenesWithBoxes.__getitem__

    def broken(scenes: ScenesWithBoxes, index: int) -> object:
        if index == 5:
            raise UnreadableImageError("scene 5: corrupt")
        return read(scenes, index)

    monkeypatch.setattr(ScenesWithBoxes, "__getitem__", broken)
    out = ["--out", str(tmp_path / "out")]
    assert main([*FEW_SHOT, *out, "--query", "3"]) == 2
    assert "need 4 items per class, but some classes have fewer: 149 (3)" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    assert main([*FEW_SHOT, *out]) == 1  # the broken image is left out


@pytest.mark.parametrize(
    "words",
    [
        ["evaluate", "mosaic", *COMMON, "--grid", "1"],
        ["evaluate", "mosaic", *COMMON, "--shot", "50"],
        ["evaluate", "contrastive", *COMMON, "--bank-split", "novel", "--k", "0"],
        ["evaluate", "contrastive", *COMMON, "--bank-split", "novel", "--temperature", "nan"],
        ["evaluate", "retrieval", *COMMON, "--ks", "0,1"],
        [
            "train",
            "few-shot",
            "--model",
            "conv4net",
            "--data",
            "scenes:96",
            "--size",
            "16",
            "--way",
            "5",
            "--query",
            "9",
        ],
        ["train", "few-shot", "--model", "conv4net", "--data", "scenes:960", "--size", "16", "--test-episodes", "0"],
        ["train", "few-shot", "--model", "conv4net", "--data", "scenes:960", "--precision", "float16"],
        ["train", "metric", "--model", "conv4net", "--data", "scenes:96", "--images", "1"],
        ["train", "metric", "--model", "conv4net", "--data", "scenes:96", "--hold-out", "1"],
        ["train", "metric", "--model", "conv4net", "--data", "scenes:96", "--learning-rate", "nan"],
        ["train", "head", *COMMON, "--width", "0"],
        ["train", "head", *COMMON, "--similarity", "nope"],
        ["figure", "retrieval", "--model", "demo", "--data", "scenes:24", "--items", "24"],
        ["figure", "few-shot", "--model", "demo", "--data", "scenes:160", "--items", "200:3", "--query", "2"],
        ["demo", "--seed", "-1"],
    ],
)
def test_every_command_checks_its_options_first(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "out.png")
    assert code_of([*words, "--out", out]) == 2
    assert list(tmp_path.iterdir()) == []
    assert "error: " in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        FEW_SHOT,
        ["train", "few-shot", "--model", "conv4net", "--data", "nowhere"],
        ["train", "metric", "--model", "conv4net", "--data", "nowhere"],
        ["train", "head", *COMMON],
        ["figure", "retrieval", "--model", "demo", "--data", "nowhere"],
        ["demo"],
    ],
)
def test_a_file_in_the_way_of_the_results_is_named_first(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert main([*words, "--out", str(tmp_path / "file" / "x" / "y.png")]) == 2
    assert f"{tmp_path / 'file'} is a file" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == ""


def test_two_processes_do_not_share_a_folder(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "captum_fam", *FEW_SHOT, "--out", str(tmp_path / "out")]
    with lock_folder(tmp_path / "out"):
        second = subprocess.run(command, capture_output=True, text=True, check=False)
    assert second.returncode == 2
    assert "out is in use by process" in second.stderr.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


def test_a_run_with_a_damaged_block_of_features_goes_on_to_the_same_table(tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert main([*FEW_SHOT, "--out", str(whole)]) == 0
    parts.mkdir()
    for name in ("run.json", "skipped.json"):
        (parts / name).write_bytes((whole / name).read_bytes())
    (parts / "features").mkdir()
    (parts / "features" / "0000000000.pt").write_bytes(b"PK half a block")
    assert main([*FEW_SHOT, "--out", str(parts)]) == 0
    assert (parts / "results.csv").read_bytes() == (whole / "results.csv").read_bytes()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("run.json", b"{"),
        ("run.json", b"[]"),
        ("summary.json", b"null"),
        ("summary.json", b'{"figures": {}, "skipped": {"x": 1}, "bank_skipped": {}}'),
        ("skipped.json", b'{"0": 3}'),
        ("records-0.jsonl", b"\x00\n"),
        ("features/0000000000.pt", None),
        ("features/index.pt", b""),
    ],
)
def test_a_broken_file_of_a_run_is_one_line_and_code_2(
    name: str, content: bytes | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main([*FEW_SHOT, "--out", str(out)]) == 0
    capsys.readouterr()
    if name.startswith(("features", "skipped")):
        (out / "records-0.jsonl").unlink()
    (out / "features").mkdir()
    if content is None:
        torch.save([json.dumps({"not": "rows"})], out / name)
    else:
        (out / name).write_bytes(content)
    assert main([*FEW_SHOT, "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert name.rpartition("/")[2] in error.splitlines()[-1]
    assert "elete" in error
    assert "Traceback" not in error
