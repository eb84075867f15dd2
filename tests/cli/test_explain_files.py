"""Many images on the command line: tables, shards, names of any bytes, and runs that are cut off."""

from __future__ import annotations

import csv
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import captum_fam
from captum_fam.cli.main import main
from tests.explanation.by_hand import cosines, embeddings, picture

Explain = Callable[..., int]
REPOSITORY = Path(captum_fam.__file__).parents[1]
CLASSES = ["--support", "gallery", "--methods", "fam,similarity-cam"]
MODEL = ["--model", "tests.explanation.by_hand:small_model", "--device", "cpu", "--quiet"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}


def manifest(out: str = "out", name: str = "manifest.json") -> dict[str, Any]:
    content: dict[str, Any] = json.loads(Path(out, name).read_text("utf-8"))
    return content


def rows_of(path: str | Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def start(*words: str, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "captum_fam", "explain", *words, *MODEL],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def test_without_figures_one_file_has_the_maps_of_the_layer(explain_small: Explain) -> None:
    assert explain_small("queries", *CLASSES, "--out", "drawn") == 0
    assert explain_small("queries", *CLASSES, "--no-figures") == 0
    assert {path.name for path in Path("out").iterdir()} == {".captum-fam", "manifest.json", "maps.npz", "results.csv"}
    maps = np.load("out/maps.npz")
    assert set(maps.files) == {f"q{i}.{method}" for i in range(7) for method in ("fam", "similarity-cam")}
    for i in range(7):
        arrays = np.load(f"drawn/q{i}.npz")
        for method in ("fam", "similarity-cam"):
            assert maps[f"q{i}.{method}"].shape == (9, 5)
            assert np.array_equal(maps[f"q{i}.{method}"], arrays[f"{method}.layer"])
    drawn, undrawn = manifest("drawn")["queries"], manifest()["queries"]
    for one, other in zip(drawn, undrawn, strict=True):
        assert one["scores"] == other["scores"]
        assert other["arrays"] == "maps.npz"
        assert "figure" not in other
    assert rows_of("drawn/results.csv") == rows_of("out/results.csv")


def test_the_table_has_a_row_per_query(explain_small: Explain) -> None:
    assert explain_small("queries", *CLASSES, "--no-figures", "--target", "jay") == 0
    rows = rows_of("out/results.csv")
    columns = ["name", "file", "predicted", "target", "score", "fam.flat"]
    assert list(rows[0]) == [*columns, "similarity-cam.coverage", "similarity-cam.flat"]
    files = sorted(Path("queries").iterdir())
    made = embeddings(files)
    means = [
        cosines(made, embeddings(sorted(Path("gallery", bird).iterdir()))).mean(1) for bird in ("crow", "jay", "wren")
    ]
    queries = manifest()["queries"]
    for index, (file, row) in enumerate(zip(files, rows, strict=True)):
        assert (row["name"], row["file"], row["target"]) == (file.stem, str(file), "jay")
        assert (
            row["predicted"] == max(zip(means, ("crow", "jay", "wren"), strict=True), key=lambda one: one[0][index])[1]
        )
        assert float(row["score"]) == pytest.approx(float(means[1][index]), abs=1e-5)
        coverage = queries[index]["methods"]["similarity-cam"]["coverage"]
        assert float(row["similarity-cam.coverage"]) == pytest.approx(coverage)
        assert (row["fam.flat"], row["similarity-cam.flat"]) == ("False", "False")


def test_a_coverage_that_is_not_defined_is_empty(explain_small: Explain) -> None:
    """A support that is its own foil has the score zero, of which nothing is a share."""
    words = ["queries/q0.png", "--support", "flat", "--foil", "flat", "--methods", "similarity-cam", "--no-figures"]
    assert explain_small(*words) == 0
    (row,) = rows_of("out/results.csv")
    assert float(row["score"]) == 0
    assert row["similarity-cam.coverage"] == ""
    assert manifest()["queries"][0]["methods"]["similarity-cam"]["coverage"] is None
    assert "NaN" not in Path("out/manifest.json").read_text("utf-8")


def test_a_table_for_pandas_and_spark(explain_small: Explain) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    words = ["queries", *CLASSES, "--no-figures"]
    assert explain_small(*words, "--table", "parquet", "--out", "columns") == 0
    assert explain_small(*words) == 0
    table = parquet.read_table("columns/results.parquet").to_pylist()
    for row, line in zip(table, rows_of("out/results.csv"), strict=True):
        assert {key: str(value) for key, value in row.items()} == line
        assert isinstance(row["score"], float)
        assert isinstance(row["fam.flat"], bool)
    assert not Path("columns/results.csv").exists()


@pytest.mark.parametrize("support", [CLASSES, ["--gallery", "flat", "--methods", "fam,similarity-cam"]])
def test_shards_together_are_the_whole_run(support: list[str], explain_small: Explain) -> None:
    """Seven queries in batches of two: batches 1 and 4, batch 2, and batch 3."""
    if "--gallery" in support:
        pytest.importorskip("safetensors")
    words = ["queries", *support, "--no-figures", "--batch-size", 2]
    assert explain_small(*words, "--out", "whole") == 0
    for number in (1, 2, 3):
        assert explain_small(*words, "--shard", f"{number}/3") == 0
    whole = np.load("whole/maps.npz")
    rows = {row["name"]: row for row in rows_of("whole/results.csv")}
    entries = {entry["name"]: {**entry, "arrays": None} for entry in manifest("whole")["queries"]}
    found: list[list[str]] = []
    for number in (1, 2, 3):
        maps = np.load(f"out/maps-{number}-of-3.npz")
        for name in maps.files:
            assert maps[name].tobytes() == whole[name].tobytes()
        part = rows_of(f"out/results-{number}-of-3.csv")
        assert all(row == rows[row["name"]] for row in part)
        content = manifest(name=f"manifest-{number}-of-3.json")
        assert content["shard"] == f"{number}/3"
        assert all({**entry, "arrays": None} == entries[entry["name"]] for entry in content["queries"])
        found.append([row["name"] for row in part])
        assert len(maps.files) == 2 * len(part)
    assert found == [["q0", "q1", "q6"], ["q2", "q3"], ["q4", "q5"]]
    assert not list(Path("out").glob(".queries*"))


def test_a_shard_without_a_query_writes_an_empty_table(explain_small: Explain) -> None:
    assert explain_small("queries/q0.png", *CLASSES, "--no-figures", "--shard", "2/2") == 0
    assert rows_of("out/results-2-of-2.csv") == []
    assert manifest(name="manifest-2-of-2.json")["queries"] == []
    assert np.load("out/maps-2-of-2.npz").files == []


@pytest.mark.parametrize("word", ["0/3", "4/3", "3", "1/0", "a/b", "-1/3"])
def test_what_is_no_shard_is_refused(word: str, explain_small: Explain, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        explain_small("queries", *CLASSES, f"--shard={word}")
    assert caught.value.code == 2
    assert "--shard: expected I/N" in capsys.readouterr().err


COUNTING = """
from pathlib import Path
from tests.explanation.by_hand import small_model

def build():
    net = small_model()
    def count(_, inputs):
        with Path("passes.txt").open("a") as file:
            print(len(inputs[0]), file=file)
    net.model.register_forward_pre_hook(count)
    return net
"""


def test_shards_that_run_at_the_same_time_share_the_embeddings_of_a_gallery(photos: Path) -> None:
    pytest.importorskip("safetensors")
    Path("counting_net.py").write_text(COUNTING)
    words = ["queries", "--gallery", "flat", "--no-figures", "--batch-size", "8", "--model", "counting_net.py:build"]
    command = [sys.executable, "-m", "captum_fam", "explain", *words, "--device", "cpu", "--out", "out", "--shard"]
    shards = [
        subprocess.Popen([*command, f"{number}/2"], env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        for number in (1, 2)
    ]
    errors = [shard.communicate()[1] for shard in shards]
    assert [shard.returncode for shard in shards] == [0, 0], errors
    # The eight images of the gallery went through the model once; a pass of one image or seven is a query or a check.
    assert Path("passes.txt").read_text().splitlines().count("8") == 1
    assert len(list(Path().glob("*.safetensors"))) == 1
    assert {path.name for path in Path("out").glob("manifest*")} == {"manifest-1-of-2.json", "manifest-2-of-2.json"}


def test_the_processes_of_torchrun_share_the_queries(explain_small: Explain) -> None:
    """One process meets an unreadable image, and its exit code must not cut off the others."""
    pytest.importorskip("safetensors")
    Path("queries/q0.png").write_bytes(b"no image")
    words = ["queries", "--gallery", "flat", "--no-figures", "--batch-size", "2"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "captum_fam", "explain"]
    done = subprocess.run(
        [*torchrun, *words, "--out", "out", *MODEL], env=ENVIRONMENT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1
    assert explain_small(*words, "--out", "whole") == 1
    whole = {row["name"]: row for row in rows_of("whole/results.csv")}
    names = []
    for number in (1, 2):
        for row in rows_of(f"out/results-{number}-of-2.csv"):
            assert row == whole[row["name"]]
            names.append(row["name"])
    assert sorted(names) == sorted(whole) == [f"q{i}" for i in range(1, 7)]


def test_a_shard_of_ones_own_does_not_go_with_torchrun(
    explain_small: Explain, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert explain_small("queries", *CLASSES, "--shard", "1/2") == 2
    assert "--shard: torchrun gives each process a part" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["classes", "gallery"])
@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_names_of_any_bytes_go_through_everything(
    kind: str, explain_small: Explain, capsys: pytest.CaptureFixture[str]
) -> None:
    if kind == "gallery":
        pytest.importorskip("safetensors")
    odd = Path("queries") / os.fsdecode(b"b\xff\n,\xc3\xa9.png")
    picture(77).save(odd)
    folder = Path("gallery") / os.fsdecode(b"w\xfe")
    os.rename("gallery/wren", folder)
    words = ["--support", "gallery"] if kind == "classes" else ["--gallery", "gallery"]
    words += ["--target", folder.name] if kind == "classes" else []
    for out, options in (("out", []), ("undrawn", ["--no-figures"])):
        assert explain_small(odd, "queries/q1.png", *words, *options, "--out", out) == 0
        first = manifest(out)["queries"][0]
        assert os.fsencode(first["file"]) == os.fsencode(odd)
        assert Path(first["file"]).is_file()
        row = rows_of(f"{out}/results.csv")[0]
        assert row["file"] == "queries/b\\udcff\n,é.png"
        if kind == "classes":
            assert first["target"] == folder.name
            assert row["target"] == "w\\udcfe"
    drawn = manifest("out")["queries"][0]
    assert Path("out", drawn["figure"]).is_file()
    assert os.fsencode(drawn["arrays"]) == b"b\xff\n,\xc3\xa9.npz"
    assert "fam" in np.load(Path("out", drawn["arrays"]))
    maps = np.load("undrawn/maps.npz")
    names = [f"{name}.{method}" for name in ("b\\udcff\n,é", "q1") for method in ("similarity-cam", "fam")]
    assert sorted(maps.files) == sorted(names)
    assert "\\udcff" in capsys.readouterr().out


def test_a_dollar_in_the_name_of_a_class_is_no_formula(explain_small: Explain) -> None:
    os.rename("gallery/wren", r"gallery/a$\bad$b")
    assert explain_small("queries/q0.png", "--support", "gallery", "--target", r"a$\bad$b", "--foil", "runner-up") == 0
    assert Path("out/q0.figure.png").is_file()


def test_results_inside_the_folder_of_queries_are_not_read(explain_small: Explain) -> None:
    for _ in range(2):
        assert explain_small("queries", *CLASSES, "--out", "queries/out") == 0
        content = manifest("queries/out")
        assert [entry["name"] for entry in content["queries"]] == [f"q{i}" for i in range(7)]
    assert [(Path(one["file"]).name, one["reason"]) for one in content["left_out"]] == [
        ("out", "results of captum-fam")
    ]
    assert explain_small("queries/q0.png", "--support", "gallery", "--out", "gallery/out") == 0
    assert explain_small("queries/q0.png", "--support", "gallery", "--out", "gallery/out") == 0
    assert manifest("gallery/out")["classes"] == ["crow", "jay", "wren"]


def test_what_is_no_image_is_named_at_the_end(explain_small: Explain, capsys: pytest.CaptureFixture[str]) -> None:
    Path("queries/labels.csv").write_text("wren")
    Path("gallery/jay/notes.txt").write_text("a jay")
    Path("queries/.hidden.png").write_bytes(b"")
    assert explain_small("queries", *CLASSES, "--no-figures") == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("7 explained, 0 unreadable; left out: ")
    assert "no image: 2 (labels.csv, notes.txt)" in last
    assert "hidden: 1 (.hidden.png)" in last
    left_out = {one["file"]: one["reason"] for one in manifest()["left_out"]}
    assert left_out == {
        "queries/labels.csv": "no image",
        "gallery/jay/notes.txt": "no image",
        "queries/.hidden.png": "hidden",
    }


def test_unreadable_images_are_counted(explain_small: Explain, capsys: pytest.CaptureFixture[str]) -> None:
    Path("queries/q3.png").write_bytes(b"no image")
    Path("gallery/jay/1.png").write_bytes(b"")
    assert explain_small("queries", *CLASSES, "--no-figures", "--batch-size", 3) == 1
    captured = capsys.readouterr()
    assert captured.out.splitlines()[-1] == "6 explained, 2 unreadable: out"
    assert captured.err.count("cannot be read") == 2
    assert [one["file"] for one in manifest()["unreadable"]] == ["gallery/jay/1.png", "queries/q3.png"]
    assert [row["name"] for row in rows_of("out/results.csv")] == ["q0", "q1", "q2", "q4", "q5", "q6"]


def test_a_run_that_cannot_begin_leaves_the_results_before_it(explain_small: Explain) -> None:
    assert explain_small("queries/q0.png", *CLASSES) == 0
    before = {path: path.read_bytes() for path in Path("out").iterdir()}
    for words in (["--layer", "nowhere"], ["--target", "owl"], ["--similarity", "dance"]):
        assert explain_small("queries/q1.png", *CLASSES, *words) == 2
    assert {path: path.read_bytes() for path in Path("out").iterdir()} == before


def test_a_run_that_was_killed_leaves_no_manifest_and_the_next_cleans_up(explain_small: Explain) -> None:
    assert explain_small("queries/q0.png", *CLASSES) == 0
    running = start("queries", *CLASSES, "--out", "out", "--batch-size", "1")
    try:
        deadline = time.monotonic() + 120
        while not Path("out/q2.figure.png").exists():
            assert running.poll() is None, running.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.02)
        running.send_signal(signal.SIGKILL)
    finally:
        running.kill()
        running.communicate()
    assert not Path("out/manifest.json").exists()
    assert not Path("out/results.csv").exists()
    if Path("out/q6.figure.png").exists():
        pytest.skip("the run was at its end when it was killed")
    assert explain_small("queries/q4.png", *CLASSES) == 0
    assert [entry["name"] for entry in manifest()["queries"]] == ["q4"]
    assert {path.name for path in Path("out").iterdir() if path.name.startswith(".")} == {".captum-fam"}


def test_a_reader_that_has_gone_does_not_end_the_run(photos: Path) -> None:
    read, write = os.pipe()
    running = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "captum_fam",
            "explain",
            "queries",
            *CLASSES,
            "--no-figures",
            "--batch-size",
            "1",
            *MODEL,
            "--out",
            "out",
        ],
        env=ENVIRONMENT,
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(write)
    os.close(read)  # as head does after its lines
    error = running.communicate(timeout=120)[1]
    assert running.returncode == 0
    assert "Error" not in error
    assert "Traceback" not in error
    assert len(manifest()["queries"]) == 7
    assert not math.isnan(float(rows_of("out/results.csv")[0]["score"]))


def test_the_parser_is_that_of_the_program(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["explain", "--help"])
    assert caught.value.code == 0
    told = capsys.readouterr().out
    for option in ("--gallery", "--bank", "--top", "--no-figures", "--table", "--shard"):
        assert option in told


def test_a_query_that_is_not_there_leaves_earlier_results(
    explain_small: Explain, capsys: pytest.CaptureFixture[str]
) -> None:
    assert explain_small("queries", "--support", "flat", "--no-figures") == 0
    before = {path: path.read_bytes() for path in Path("out").iterdir()}
    assert explain_small("quieries", "--support", "flat", "--no-figures") == 2
    assert "QUERY quieries: no such file or folder" in capsys.readouterr().err
    Path("text.png").write_text("no image")
    assert explain_small("text.png", "--support", "flat", "--no-figures") == 1
    assert "0 explained, 1 unreadable" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in Path("out").iterdir()} == before


def test_a_long_name_that_a_file_can_have_has_results(explain_small: Explain) -> None:
    long = Path("queries", f"{'n' * 250}.png")
    shutil.copy("queries/q0.png", long)
    assert explain_small("queries/q1.png", long, "--support", "flat", "--methods", "fam,similarity-cam") == 0
    (first, second) = manifest()["queries"]
    assert second["file"] == str(long)
    assert second["name"].startswith("n" * 100)
    assert Path("out", second["figure"]).is_file()
    assert np.load(Path("out", second["arrays"]))["fam"].shape == np.load("out/q1.npz")["fam"].shape
    assert first["name"] == "q1"


def test_shards_of_another_run_are_refused(explain_small: Explain, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["queries", "--support", "flat", "--no-figures", "--batch-size", "2"]
    assert explain_small(*words, "--shard", "1/2") == 0
    for others in (["--shard", "2/3"], ["--shard", "2/2", "--methods", "center"], ["--shard", "2/2", "--smooth", "3"]):
        assert explain_small(*words, *others) == 2
        assert "shards of another run" in capsys.readouterr().err
    assert explain_small(*words, "--shard", "2/2") == 0
    assert sorted(path.name for path in Path("out").glob("results*")) == ["results-1-of-2.csv", "results-2-of-2.csv"]
    assert explain_small(*words) == 0
    assert [path.name for path in Path("out").glob("results*")] == ["results.csv"]


def test_the_table_has_the_nearest_images_of_a_gallery(explain_small: Explain) -> None:
    pytest.importorskip("safetensors")
    assert explain_small("queries", "--gallery", "flat", "--top", 3, "--no-figures") == 0
    with Path("out/results.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for row, query in zip(rows, manifest()["queries"], strict=True):
        for number, hit in enumerate(query["supports"], start=1):
            assert row[f"neighbor.{number}"] == hit["file"]
            assert float(row[f"neighbor.{number}.similarity"]) == hit["similarity"]


def test_a_device_that_is_not_there_is_named(explain_small: Explain, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        explain_small("queries", "--support", "flat", "--device", "tpu")
    assert stopped.value.code == 2
    assert "--device: 'tpu' is no device of this machine" in capsys.readouterr().err


def test_results_of_a_query_that_is_named_like_a_shard_stay(explain_small: Explain) -> None:
    names = ["wren-1-of-2", "maps-1-of-2", "results-2-of-3", "maps"]
    for name in names:
        shutil.copy("queries/q0.png", f"{name}.png")
    assert explain_small(*(f"{name}.png" for name in names), "--support", "flat", "--batch-size", 1) == 0
    for query in manifest()["queries"]:
        assert Path("out", query["figure"]).is_file()
        assert np.load(Path("out", query["arrays"]))["fam"].ndim == 2
