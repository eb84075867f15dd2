"""Gives the reader of weights broken and hostile files, and checks what the reader does with each.

``python -m tests.models.fuzz_files --inputs 10000 --seed 0`` makes mutations of valid files of each kind, after the
files of ``hostile_files``. For each file, reading it and loading it into a network must either succeed or raise
``WeightsError`` with a short and printable message. It must take less than a second of the processor and 100 MB, and
must run nothing: an audit hook of Python sees every command, compilation, import and file opened for writing. An input
is made from the seed and its number alone, so that ``--first 123 --inputs 1`` makes input 123 again.
"""

from __future__ import annotations

import argparse
import io
import multiprocessing
import pathlib
import pickle
import random
import resource
import signal
import sys
import tempfile
import time
import unicodedata
import warnings
import zipfile
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import nn

from captum_fam.models import WeightsError, load_weights, read_memory_bank, read_state_dict
from tests.models.file_writers import Call, Global, Python2Writer
from tests.models.hostile_files import hostile_files, legacy, zipped

_MOST_SECONDS = 1.0
_MOST_KILOBYTES = 100_000
_LONGEST_MESSAGE = 6000
_BATCH = 500
# Events of the audit hook that no reading of weights causes.
_FORBIDDEN = (
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.fork",
    "subprocess",
    "exec",
    "compile",
    "import",
    "socket",
    "shutil",
    "os.remove",
    "os.rename",
    "ctypes",
)


class Network(nn.Module):
    """A small network with batch normalization, whose names have one and two dots."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Sequential(nn.Linear(4, 5))


def _torch_file(value: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def _deflated(content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    return buffer.getvalue()


def valid_files(folder: Path) -> list[bytes]:
    """Valid files of each kind that the reader knows."""
    torch.manual_seed(0)
    state = Network().state_dict()
    beside = {
        "args": argparse.Namespace(lr=0.1, out=pathlib.PurePosixPath("a/b"), names={"x", "y"}),
        "best": np.float64(0.5),
        "history": np.arange(6, dtype=np.int16).reshape(2, 3),
        "losses": defaultdict(list, train=[1.5, 2.5]),
        "shape": torch.Size([1, 2]),
        "dtype": torch.float16,
        "order": OrderedDict(a=(1, None, True), b=b"bytes"),
        "tied": [state["conv.weight"], state["conv.weight"].transpose(0, 1)],
    }
    prefixed = OrderedDict((f"module.encoder_q.{name}", tensor) for name, tensor in state.items())
    files = [
        _torch_file(value, pickle_protocol=protocol, _use_new_zipfile_serialization=is_zip)
        for value in (state, {"state_dict": state, **beside}, {"teacher": prefixed, "epoch": 3})
        for protocol in (2, 5)
        for is_zip in (True, False)
    ]
    files += [_deflated(files[0]), save(dict(state)), save(dict(prefixed)), pickle.dumps({"a": 1}, protocol=4)]
    writer = Python2Writer("cuda:0")
    buffers = {"memory": writer.tensor(np.ones((3, 2), np.float32)), "params": writer.tensor(np.ones(4, np.float32))}
    average = Call(Global("lib.NCEAverage", "NCEAverage"), (), {"_buffers": buffers}, new=True)
    files.append(writer.write(folder / "python2.pth", {"lemniscate": average}).read_bytes())
    return files


def _pickle_of(content: bytes) -> tuple[bytes, dict[str, bytes]] | None:
    """The pickle and the storages of a file in the zip format, so that a mutation of them has a valid archive."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            (name,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
            folder = name.removesuffix("data.pkl") + "data/"
            storages = {n.removeprefix(folder): archive.read(n) for n in archive.namelist() if n.startswith(folder)}
            return archive.read(name), storages
    except (zipfile.BadZipFile, ValueError):
        return None


_EXTREMES = [0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1]
_OPERATIONS = (
    b"(.0122FGIJKLMNPQRSTUVXabcdeghijloprstuq})]\x80\x81\x82\x85\x86\x87\x88\x8a\x8b\x8c\x8d\x8e\x8f\x90\x91\x92\x93"
    b"\x94\x95\x96\x97B"
)


def _flip(rng: random.Random, content: bytearray, _: list[bytes]) -> None:
    for _i in range(rng.choice((1, 1, 2, 8))):
        content[rng.randrange(len(content))] = rng.randrange(256)


def _cut(rng: random.Random, content: bytearray, _: list[bytes]) -> None:
    del content[rng.randrange(len(content)) :]


def _splice(rng: random.Random, content: bytearray, others: list[bytes]) -> None:
    other = rng.choice(others)
    start = rng.randrange(len(other))
    content[rng.randrange(len(content)) :] = other[start : start + rng.choice((16, 256, len(other)))]


def _lie(rng: random.Random, content: bytearray, _: list[bytes]) -> None:
    width = rng.choice((1, 2, 4, 8))
    place = rng.randrange(len(content))
    number = rng.choice(_EXTREMES) % 256**width
    content[place : place + width] = number.to_bytes(width, "little")


def _repeat(rng: random.Random, content: bytearray, _: list[bytes]) -> None:
    start = rng.randrange(len(content))
    content[start:start] = content[start : start + rng.choice((1, 4, 30, 200))] * rng.choice((1, 2, 100))


def _drop(rng: random.Random, content: bytearray, _: list[bytes]) -> None:
    start = rng.randrange(len(content))
    del content[start : start + rng.choice((1, 2, 8, 64))]


def _operate(rng: random.Random, content: bytearray, _: list[bytes]) -> None:
    place = rng.randrange(len(content))
    content[place:place] = bytes(rng.choice(_OPERATIONS) for _i in range(rng.choice((1, 2, 5, 500))))


_MUTATIONS: tuple[Callable[[random.Random, bytearray, list[bytes]], None], ...] = (
    _flip,
    _cut,
    _splice,
    _lie,
    _repeat,
    _drop,
    _operate,
)


def _mutated(rng: random.Random, content: bytes, others: list[bytes]) -> bytes:
    mutated = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        if mutated:
            rng.choice(_MUTATIONS)(rng, mutated, others)
    return bytes(mutated)


def make_input(number: int, seed: int, valid: list[bytes], hostile: list[bytes]) -> bytes:
    """One input: first the hostile files as they are, then mutations of these and, mostly, of valid files."""
    if number < len(hostile):
        return hostile[number]
    rng = random.Random(f"{seed} {number}")
    is_hostile = rng.random() < 0.2
    content = rng.choice(hostile if is_hostile else valid)
    parts = _pickle_of(content) if rng.random() < 0.6 and not is_hostile else None
    if parts is None:
        return _mutated(rng, content, valid)
    pickled = _mutated(rng, parts[0], [part[0] for part in map(_pickle_of, valid) if part])
    return legacy(pickled, parts[1]) if rng.random() < 0.3 else zipped(pickled, parts[1])


class _TooLongError(BaseException):
    """The watchdog: no reader catches it."""


def _stop(*_: object) -> None:
    raise _TooLongError


def _read(path: Path) -> None:
    """All ways in which the package reads a file of weights."""
    errors = []
    for read in (read_state_dict, lambda path: load_weights(Network(), path), lambda path: read_memory_bank(path, [0])):
        try:
            read(path)
        except WeightsError as error:
            errors.append(error)
        except ValueError as error:
            if "labels" not in str(error):
                raise
    if errors:
        raise errors[0]


def check(content: bytes, path: Path, seen: list[str]) -> tuple[str, float]:
    """Read one input. Gives what is wrong, empty for nothing, and the seconds of the processor."""
    path.write_bytes(content)
    seen.clear()
    signal.setitimer(signal.ITIMER_PROF, 10 * _MOST_SECONDS)
    start, kilobytes = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    wrong = ""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _read(path)
    except WeightsError as error:
        message = str(error)
        if (
            any(unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp") for char in message)
            or len(message) > _LONGEST_MESSAGE
            or "weights_only" in message
        ):
            wrong = f"message {message[:200]!r}"
    except _TooLongError:
        wrong = "does not end"
    except BaseException as error:  # whatever it is, it is the finding
        wrong = f"{type(error).__name__}: {str(error)[:200]!r}"
    signal.setitimer(signal.ITIMER_PROF, 0)
    seconds = time.process_time() - start
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - kilobytes
    if seconds > _MOST_SECONDS:
        wrong = wrong or f"takes {seconds:.1f} s"
    if grown > _MOST_KILOBYTES:
        wrong = wrong or f"takes {grown // 1000} MB"
    return (f"causes {seen[0]}" if seen else wrong), seconds


def _run_batch(numbers: range, seed: int, valid: list[bytes], hostile: list[bytes], folder: str, queue: Any) -> None:
    seen: list[str] = []
    path, sentinel = Path(folder, "input.pth"), Path(folder, "sentinel")
    signal.signal(signal.SIGPROF, _stop)
    "a\0".encode("unicode_escape").decode("unicode_escape").encode().decode("raw_unicode_escape")
    for content in valid:  # imports what is imported at the first use, and touches the memory that torch keeps
        check(content, path, seen)
    watching = True

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        is_writing = event == "open" and isinstance(arguments[1], str) and set("wax+") & set(arguments[1])
        if watching and (is_writing or event.startswith(_FORBIDDEN)):
            seen.append(f"{event} {arguments[:2]!r:.100}")

    sys.addaudithook(watch)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + 2**30, size + 2**30))
    for number in numbers:
        queue.put((number, "begun", 0.0))
        content = make_input(number, seed, valid, hostile)
        wrong, seconds = check(content, path, seen)
        if sentinel.exists():
            wrong = "was run"
        queue.put((number, wrong, seconds))
    watching = False


def run(first: int, count: int, seed: int) -> tuple[dict[int, str], float]:
    """Check inputs in child processes. Gives what is wrong by number of the input, and the slowest one's seconds."""
    context = multiprocessing.get_context("fork")
    wrong: dict[int, str] = {}
    slowest = 0.0
    with tempfile.TemporaryDirectory() as folder:
        valid = valid_files(Path(folder))
        hostile = list(hostile_files(Path(folder, "sentinel")).values())
        for start in range(first, first + count, _BATCH):
            numbers = range(start, min(start + _BATCH, first + count))
            queue = context.SimpleQueue()
            child = context.Process(target=_run_batch, args=(numbers, seed, valid, hostile, folder, queue))
            child.start()
            begun = None
            while child.is_alive() or not queue.empty():
                if queue.empty():
                    child.join(0.05)
                    continue
                number, what, seconds = queue.get()
                begun = number if what == "begun" else None
                if what not in ("", "begun"):
                    wrong[number] = what
                slowest = max(slowest, seconds)
            if child.exitcode:
                wrong[begun if begun is not None else start] = f"ends the process with {child.exitcode}"
    return wrong, slowest


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=10_000, help="number of inputs (default: 10000)")
    parser.add_argument("--first", type=int, default=0, help="number of the first input (default: 0)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the mutations (default: 0)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    wrong, slowest = run(options.first, options.inputs, options.seed)
    for number, what in wrong.items():
        print(f"input {number}: {what}")
    kinds = Counter(what.partition(":")[0] for what in wrong.values())
    print(f"{options.inputs} inputs, {len(wrong)} wrong {dict(kinds)}, slowest {slowest:.2f} s of the processor")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
