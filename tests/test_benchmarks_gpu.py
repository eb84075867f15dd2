"""The run on a GPU, rehearsed on the CPU: stages that fail, stop, hang and are resumed, and every real stage small."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from benchmarks import gpu
from benchmarks.gpu_stages import STAGES, Stage
from benchmarks.gpu_stages.child import run_stage
from benchmarks.gpu_stages.cuda_tests import marked_files
from benchmarks.gpu_stages.environment import look, wheels
from benchmarks.gpu_stages.pack import pack
from benchmarks.gpu_stages.page import summary, write_page
from benchmarks.gpu_stages.report import Case, Report, read_json
from benchmarks.gpu_stages.runner import budget_of, run_stages
from benchmarks.gpu_stages.timing import measure
from benchmarks.pieces import write_json

FAKES = {
    "works": "def run(case, report):\n    report.row(n=1)\n    report.fact(device=case.device)\n",
    "fails": "def run(case, report):\n    report.row(n=1)\n    raise ValueError('broken')\n",
    "stops": "def run(case, report):\n    for n in range(10**6):\n"
    "        if report.stops_before(f'step {n}', seconds=10):\n            return\n        report.row(n=n)\n",
    "hangs": "import subprocess, sys, time\n\ndef run(case, report):\n    report.row(n=1)\n"
    "    child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
    "    report.fact(child=child.pid)\n    time.sleep(60)\n",
    "dies": "import os\n\ndef run(case, report):\n    report.row(n=1)\n"
    "    print('last words', flush=True)\n    os._exit(3)\n",
    "counts": "from pathlib import Path\n\ndef run(case, report):\n    folder = Path(case.folder)\n"
    "    with (folder.parent / 'count').open('a') as file:\n        file.write('x')\n"
    "    report.row(left=[path.name for path in folder.iterdir()])\n    (folder / 'left').touch()\n",
}


@pytest.fixture
def fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Stage]:
    """Stages whose modules stand in a folder of the test."""
    folder = tmp_path / "modules"
    folder.mkdir()
    for name, code in FAKES.items():
        (folder / f"fake_{name}.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    return {name: Stage(name, f"fake_{name}", 1, 5) for name in FAKES}


def run(stages: list[Stage], out: Path, **changes: Any) -> dict[str, dict[str, Any]]:
    options: dict[str, Any] = {"device": "cpu", "size": "small", "data_pack": None, "grace": 5.0, **changes}
    return run_stages(stages, out, options.pop("minutes", 5), **options)


def is_alive(pid: int) -> bool:
    state = Path(f"/proc/{pid}/stat")
    return state.exists() and state.read_text().rpartition(")")[2].split()[0] != "Z"


def test_a_stage_that_fails_or_dies_leaves_its_rows_and_the_next_one_runs(
    fakes: dict[str, Stage], tmp_path: Path
) -> None:
    reports = run([fakes[name] for name in ("fails", "dies", "stops", "works")], tmp_path / "out")
    assert {name: report["state"] for name, report in reports.items()} == {
        "fails": "failed",
        "dies": "failed",
        "stops": "stopped",
        "works": "done",
    }
    assert reports["fails"]["error"] == "ValueError: broken"
    assert "raise ValueError('broken')" in reports["fails"]["traceback"]
    assert reports["fails"]["rows"] == reports["dies"]["rows"] == reports["works"]["rows"] == [{"n": 1}]
    assert reports["dies"]["error"] == "the process ended with code 3"
    assert "last words" in reports["dies"]["log"]
    assert reports["stops"]["stopped_before"] == f"step {len(reports['stops']['rows'])}"
    assert reports["works"]["facts"] == {"device": "cpu"}
    for name, report in reports.items():
        assert read_json(tmp_path / "out" / f"{name}.json") == report
    table = "\n".join(summary(reports))
    assert "| fails | failed |" in table
    assert "ValueError: broken" in table


def test_a_stage_that_hangs_is_ended_with_its_children(fakes: dict[str, Stage], tmp_path: Path) -> None:
    stage = Stage("hangs", fakes["hangs"].module, 1, 4)
    start = time.monotonic()
    (report,) = run([stage], tmp_path, grace=2.0).values()
    assert time.monotonic() - start < 30
    assert (report["state"], report["rows"], report["budget_s"]) == ("killed", [{"n": 1}], 4.0)
    deadline = time.monotonic() + 5
    while is_alive(report["facts"]["child"]) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_alive(report["facts"]["child"])


def test_only_what_is_not_finished_is_run_again_and_from_its_beginning(fakes: dict[str, Stage], tmp_path: Path) -> None:
    out = tmp_path / "out"
    run([fakes["counts"]], out)
    first = run([fakes["counts"], fakes["fails"]], out)
    assert (out / "count").read_text() == "x"
    assert first["counts"]["state"] == "done"
    for state in ("running", "killed", "failed"):
        write_json(out / "counts.json", {**read_json(out / "counts.json"), "state": state})
        assert run([fakes["counts"]], out)["counts"]["rows"] == [{"left": []}]
    assert (out / "count").read_text() == "xxxx"
    # Of a rehearsal nothing stays in a run on a GPU.
    run([fakes["counts"]], out, size="full")
    assert (out / "count").read_text() == "xxxxx"


def test_the_time_that_is_left_is_divided_by_shares(fakes: dict[str, Stage], tmp_path: Path) -> None:
    stages = [Stage(name, "", share, most) for name, share, most in (("a", 3, 1000), ("b", 1, 1000), ("c", 2, 500))]
    # Where each stage ends at once, all of the time is left for the next one.
    assert [budget_of(stages[number:], 600) for number in range(3)] == [300, 200, 500]
    assert run([fakes["works"]], tmp_path / "late", minutes=0.001) == {}


def test_a_report_is_whole_at_every_moment(tmp_path: Path) -> None:
    report = Report(tmp_path / "a.json", "a", 100, {"size": "small", "device": "cpu"})
    for number in range(3):
        report.row(number=number)
        assert len(json.loads((tmp_path / "a.json").read_text())["rows"]) == number + 1
    assert not report.stops_before("more", seconds=50)
    assert report.stops_before("the rest", seconds=200)
    report.finish()
    assert {key: read_json(tmp_path / "a.json")[key] for key in ("state", "stopped_before")} == {
        "state": "stopped",
        "stopped_before": "the rest",
    }
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    (tmp_path / "a.json").write_text("{")
    assert read_json(tmp_path / "a.json") == {}


@pytest.mark.parametrize(
    "name",
    [
        stage.name if stage.name in ("bank", "few-shot") else pytest.param(stage.name, marks=pytest.mark.slow)
        for stage in STAGES
    ],
)
def test_every_stage_runs_small_on_the_cpu(name: str, tmp_path: Path) -> None:
    pytest.importorskip("safetensors", reason="needs the extra train")
    if name == "cost":
        pytest.importorskip("torchcam", reason="needs the extra benchmarks")
    (stage,) = (stage for stage in STAGES if stage.name == name)
    case = Case("cpu", "small", str(tmp_path / name))
    content = run_stage(stage.module, name, 300, tmp_path / f"{name}.json", case).content
    assert content["state"] == "done", content.get("traceback", "") + str(content["facts"].get("output", ""))
    assert content["rows"]
    assert not [row for row in content["rows"] if row.get("error")]
    if name == "cost":
        assert len({row["method"] for row in content["rows"]}) == 6
        assert all(row["ms"] > 0 for row in content["rows"])
    if name == "bank":
        assert all(row["exact"] for row in content["rows"])
    if name == "ranks":
        assert [row["step"] for row in content["rows"]] == ["objects", "all_reduce", "gradients", "evaluate"]
        assert content["rows"][2]["largest_difference"] < 1e-6


def test_what_fails_in_one_setting_is_a_row_and_the_other_methods_are_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks.gpu_stages import cost

    def call(method: str, model: Any, x: torch.Tensor, supports: torch.Tensor) -> Any:
        if method == "LayerFAM":
            raise RuntimeError("out of memory")
        return lambda: None, lambda: None

    monkeypatch.setattr(cost, "_call", call)
    monkeypatch.setattr(cost, "MODES", {"float32": (False, False, False)})
    report = run_stage(cost.__name__, "cost", 300, tmp_path / "cost.json", Case("cpu", "small", str(tmp_path / "cost")))
    errors = {row["method"]: row.get("error") for row in report.content["rows"]}
    assert errors.pop("LayerFAM") == "RuntimeError: out of memory"
    assert set(errors.values()) == {None}
    assert report.content["state"] == "done"


def test_a_call_is_timed_a_few_times_and_by_the_clock() -> None:
    calls = []
    timing = measure(lambda: (calls.append(1), time.sleep(0.01)), "cpu", repetitions=5, seconds=0)
    assert len(calls) == 4  # once before, and three times in any case
    assert timing.least >= 10
    assert timing.least <= timing.ms <= timing.most
    assert timing.peak_mib is None


def test_the_machine_and_the_wheels_are_named() -> None:
    found = look()
    assert torch.__version__.startswith(found["versions"]["torch"].partition("+")[0])
    assert len(found["cards"]) == torch.cuda.device_count()
    assert found["missing"] == [name for name, number in found["versions"].items() if number is None]
    named = {line.partition("==")[0] for line in wheels()}
    assert {"captum", "tqdm"} <= named
    assert not {"torch", "torchvision", "numpy", "captum-fam"} & named


def test_the_marked_tests_are_found_in_their_files() -> None:
    names = {path.name for path in marked_files()}
    assert {"test_devices.py", "test_captum_contract.py", "test_few_shot.py"} <= names
    assert "test_entry_points.py" not in names


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """Two CUB photographs and an ImageNet one, of known sizes."""
    cub, imagenet = (tmp_path / "shared" / "data" / name for name in ("cub50", "imagenet1300"))
    (cub / "images" / "a").mkdir(parents=True)
    (imagenet / "images").mkdir(parents=True)
    Image.new("RGB", (272, 340), "red").save(cub / "images" / "a" / "1.jpg")
    Image.new("L", (60, 40)).save(cub / "images" / "a" / "2.jpg")
    Image.new("RGB", (680, 272), "blue").save(imagenet / "images" / "v1.JPEG")
    tables = {
        "images.txt": "1 a/1.jpg\n2 a/2.jpg\n",
        "classes.txt": "1 a\n",
        "image_class_labels.txt": "1 1\n2 1\n",
        "train_test_split.txt": "1 1\n2 0\n",
        "bounding_boxes.txt": "1 10.0 20.0 100.0 50.0\n2 1.0 2.0 3.0 4.0\n",
    }
    for name, text in tables.items():
        (cub / name).write_text(text)
    (imagenet / "LOC_val_solution.csv").write_text("ImageId,PredictionString\nv1,n02 100 20 300 200 n02 0 0 10 10 \n")
    return tmp_path / "shared"


def test_packed_photographs_are_smaller_and_their_boxes_shrink_with_them(shared: Path, tmp_path: Path) -> None:
    from captum_fam.experiments.data import CUB200, ImageNetBoxes

    out = tmp_path / "pack"
    assert 0 < pack(shared, out) < 1
    assert 0 < pack(shared, out) < 1  # in place of its own
    dataset = CUB200(out / "cub50")
    image, _, boxes = dataset[0]
    assert tuple(image.shape) == (3, 170, 136)
    assert boxes.tolist() == [[5.0, 10.0, 55.0, 35.0]]
    assert tuple(dataset[1][0].shape) == (3, 40, 60)  # is not enlarged
    image, _, boxes = ImageNetBoxes(out / "imagenet1300" / "images", out / "imagenet1300" / "LOC_val_solution.csv")[0]
    assert tuple(image.shape) == (3, 136, 340)
    assert boxes.tolist() == [[50.0, 10.0, 150.0, 100.0], [0.0, 0.0, 5.0, 5.0]]
    with pytest.raises(ValueError, match="is no pack"):
        pack(shared, shared)


def test_a_pack_that_is_too_large_is_refused(shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.gpu_stages.pack.MOST_MIB", 0.001)
    with pytest.raises(ValueError, match="the most that a GPU machine takes"):
        pack(shared, tmp_path / "pack")


def test_the_page_without_a_gpu_says_that_there_are_no_results(tmp_path: Path) -> None:
    write_json(tmp_path / "bank.json", {"device": "cpu", "state": "done", "rows": [{"batch": 1}]})
    write_page(tmp_path, tmp_path / "gpu.md")
    text = (tmp_path / "gpu.md").read_text()
    assert "No GPU has run this yet" in text
    introduction = text.partition("## Results")[0].rstrip()
    assert (Path(__file__).parents[1] / "docs" / "benchmarks" / "gpu.md").read_text().startswith(introduction)


def test_the_page_has_the_card_and_a_table_of_every_stage(tmp_path: Path) -> None:
    common = {"device": "cuda", "size": "full", "seconds": 12.3, "budget_s": 45.0}
    write_json(tmp_path / "environment.json", {"cards": ["Card X"], "cuda": "13.0", "versions": {"torch": "2.9"}})
    bank = {
        "state": "stopped",
        "stopped_before": "batch 64",
        "facts": {"rows": 10},
        "rows": [{"batch": 1, "ms": 0.12345}],
    }
    tests = {"state": "failed", "error": "E: x", "facts": {"passed": 1}}
    tests["rows"] = [{"test": "a", "state": "passed"}, {"test": "b", "state": "failure", "message": "a | b\nc"}]
    write_json(tmp_path / "bank.json", {**common, **bank})
    write_json(tmp_path / "tests.json", {**common, **tests})
    write_page(tmp_path, tmp_path / "gpu.md")
    text = (tmp_path / "gpu.md").read_text()
    assert "Card X; CUDA 13.0" in text
    assert "Stopped after 12 of 45 seconds, before: batch 64." in text
    assert "| batch | ms |\n|---|---|\n| 1 | 0.123 |" in text
    assert "| b | failure | a \\| b c |" in text
    assert "| a | passed" not in text


@pytest.mark.parametrize(
    ("words", "message"),
    [(["--stages", "cost,costs"], "unknown: costs"), (["--data-pack", "no-such"], "there is no folder no-such")],
)
def test_wrong_words_are_refused(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        gpu.main(words)
    assert message in capsys.readouterr().err


def test_one_command_runs_the_stages_and_prints_how_they_ended(
    fakes: dict[str, Stage], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu, "STAGES", (fakes["works"], fakes["fails"]))
    monkeypatch.setattr(gpu, "look", lambda: {"missing": ["torchcam"], "cards": []})
    monkeypatch.setattr("signal.signal", lambda *_: None)
    out = ["--out", str(tmp_path / "out")]
    assert gpu.main([*out, "--size", "small"]) == 1
    printed = capsys.readouterr().out
    assert "missing: torchcam" in printed
    assert "| works | done |" in printed
    assert gpu.main([*out, "--size", "small", "--stages", "works"]) == 0
    assert "works: finished before" in capsys.readouterr().out
    assert gpu.main(out) == 1
    assert "no GPU is seen" in capsys.readouterr().err
