"""A run that is killed and resumed, or shared by processes, gives what an undisturbed one gives."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from captum_fam.cli.main import main
from captum_fam.experiments.evaluation import evaluate
from captum_fam.experiments.protocols import PreparedProtocol
from captum_fam.experiments.records import UnitRecord
from tests.experiments.data_sets import Damaged
from tests.experiments.runs import NAMES, make_protocol

_SCRIPT = Path(__file__).with_name("runs.py")
_ROOT = Path(__file__).resolve().parents[2]


def _records(folder: Path) -> dict[int, Any]:
    found: dict[int, Any] = {}
    for path in folder.glob("records-*.jsonl"):
        for line in path.read_text().splitlines():
            record = json.loads(line)
            assert record["unit"] not in found, "a unit was done twice"
            found[record["unit"]] = record
    return found


def _start(names: str, out: Path, **env: str) -> subprocess.Popen[bytes]:
    # One thread: sums over threads need not be in the same order.
    env = {**os.environ, "PYTHONPATH": str(_ROOT), "OMP_NUM_THREADS": "1", **env}
    return subprocess.Popen([sys.executable, str(_SCRIPT), names, str(out)], env=env)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All protocols in one process without a break."""
    out = tmp_path_factory.mktemp("undisturbed")
    assert _start(",".join(NAMES), out).wait() == 0
    return out


@pytest.mark.parametrize("name", NAMES)
def test_a_run_that_stops_after_any_unit_goes_on_to_the_same_result(name: str, tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stopping(protocol: Any, after: int) -> Any:
        prepare = protocol.prepare

        def prepared(*arguments: Any) -> PreparedProtocol[Any]:
            whole = prepare(*arguments)
            run = whole.run

            def stopped(units: list[int]) -> Iterator[UnitRecord]:
                for number, record in enumerate(run(units)):
                    if number == after:
                        raise Stop
                    yield record

            whole.run = stopped
            return whole

        protocol.prepare = prepared
        return protocol

    whole = evaluate(make_protocol(name), tmp_path / "whole", examples=0)
    for _ in range(2):
        with pytest.raises(Stop):
            evaluate(stopping(make_protocol(name), 2), tmp_path / "parts", examples=0)
    assert len(_records(tmp_path / "parts")) == 4
    resumed = evaluate(make_protocol(name), tmp_path / "parts", examples=0)
    assert resumed == whole
    assert _records(tmp_path / "parts") == _records(tmp_path / "whole")
    assert (tmp_path / "parts/results.csv").read_bytes() == (tmp_path / "whole/results.csv").read_bytes()


def test_a_process_killed_in_the_middle_loses_and_repeats_nothing(tmp_path: Path, undisturbed: Path) -> None:
    process = _start("few-shot", tmp_path)
    path = tmp_path / "few-shot/records-0.jsonl"
    deadline = time.monotonic() + 120
    while not (path.exists() and path.read_bytes().count(b"\n") >= 2):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = _records(tmp_path / "few-shot")
    assert 2 <= len(done) < 9
    assert not (tmp_path / "few-shot/results.csv").exists()
    assert _start("few-shot", tmp_path).wait() == 0
    assert _records(tmp_path / "few-shot") == _records(undisturbed / "few-shot")
    assert (tmp_path / "few-shot/results.csv").read_bytes() == (undisturbed / "few-shot/results.csv").read_bytes()


def test_two_processes_give_the_numbers_of_one(tmp_path: Path, undisturbed: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    ranks = [
        _start(",".join(NAMES), tmp_path, RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
        for rank in range(2)
    ]
    assert [process.wait() for process in ranks] == [0, 0]
    for name in NAMES:
        # 9 episodes, 9 batches of which the last is shorter, 7 mosaics: no number that two divide.
        assert (tmp_path / name / "records-1.jsonl").read_text().count("\n") in (3, 4)
        assert _records(tmp_path / name) == _records(undisturbed / name)
        assert (tmp_path / name / "results.csv").read_bytes() == (undisturbed / name / "results.csv").read_bytes()


@pytest.mark.parametrize("name", ["few-shot", "retrieval", "mosaic"])
def test_what_becomes_of_a_file_between_kill_and_resume_changes_no_unit(name: str, tmp_path: Path) -> None:
    def protocol(*unreadable: int) -> Any:
        made = make_protocol(name)
        made.query = 2
        made.dataset = Damaged(made.dataset, set(unreadable))
        return made

    whole = evaluate(protocol(3, 40), tmp_path / "whole", examples=0)
    assert whole is not None
    assert whole.skipped.keys() == {3, 40}
    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    lines = (tmp_path / "parts/records-0.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "parts/records-0.jsonl").write_text("".join(lines[:3]))
    # Broken by now: a file that the units were drawn with.
    with pytest.raises(ValueError, match=r"scene-9\.jpg: corrupt; usable when this run began.*restore it"):
        evaluate(protocol(3, 9, 40), tmp_path / "parts", examples=0)
    # Restored, and with it one that was left out.
    assert evaluate(protocol(40), tmp_path / "parts", examples=0) == whole
    assert _records(tmp_path / "parts") == _records(tmp_path / "whole")


@pytest.mark.parametrize("name", NAMES)
def test_a_finished_run_needs_no_image_any_more(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone(Damaged):
        def __getitem__(self, index: int) -> Any:
            raise AssertionError("an image was read")

    def protocol(kind: type[Damaged] = Damaged) -> Any:
        made = make_protocol(name)
        made.query = 2
        made.dataset = kind(made.dataset, {3, 40})
        if name == "contrastive":
            made.bank = kind(made.bank, {7})
        return made

    whole = evaluate(protocol(), tmp_path, examples=2, wrong=3)
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    again = evaluate(protocol(Gone), tmp_path, examples=2, wrong=3, about={"model": "small"})
    assert again == whole
    assert again is not None
    assert again.skipped.keys() == {3, 40}
    assert len(again.bank_skipped) == (name == "contrastive")
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary.pop("about") == {"model": "small"}
    before = json.loads(files.pop("summary.json"))
    del before["about"]
    assert summary == before
    assert {path: (tmp_path / path).read_bytes() for path in files} == files
    assert evaluate(protocol(Gone), tmp_path, examples=0) == whole


@pytest.mark.parametrize("figures", [{"examples": 3}, {"examples": 2, "wrong": 1}])
def test_figures_that_a_finished_run_has_not_are_drawn(figures: dict[str, int], tmp_path: Path) -> None:
    evaluate(make_protocol("retrieval"), tmp_path, examples=2)
    before = (tmp_path / "examples.png").read_bytes()
    evaluate(make_protocol("retrieval"), tmp_path, **figures)
    assert ((tmp_path / "examples.png").read_bytes() == before) == (figures["examples"] == 2)
    assert (tmp_path / "wrong.png").is_file() == ("wrong" in figures)
    (tmp_path / "examples.png").unlink()
    evaluate(make_protocol("retrieval"), tmp_path, **figures)
    assert (tmp_path / "examples.png").is_file()


def test_torchrun_of_the_command_gives_the_table_of_one_process(tmp_path: Path) -> None:
    command = ["evaluate", "few-shot", "--model", "demo", "--data", "scenes:160", "--device", "cpu", "--examples", "0"]
    command += ["--episodes", "5", "--way", "3", "--query", "4", "--methods", "fam,grad-cam-foil"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    subprocess.run(
        [*torchrun, "-m", "captum_fam", *command, "--out", str(tmp_path / "two")],
        env={**os.environ, "PYTHONPATH": str(_ROOT), "OMP_NUM_THREADS": "1"},
        check=True,
    )
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert main([*command, "--out", str(tmp_path / "one")]) == 0
    finally:
        torch.set_num_threads(threads)
    shares = [(tmp_path / f"two/records-{rank}.jsonl").read_text().count("\n") for rank in range(2)]
    assert shares == [3, 2]
    assert (tmp_path / "two/results.csv").read_bytes() == (tmp_path / "one/results.csv").read_bytes()
