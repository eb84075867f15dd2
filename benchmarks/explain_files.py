"""Time and memory of ``captum-fam explain`` on folders of image files, each run in a process of its own.

    python -m benchmarks.explain_files [--images 160] [--many 2000] [--out docs/benchmarks/explain.md]

The images are drawn: smooth colors with noise, JPEG, 500 x 375 pixels. The weights are random, which changes no time.
Start-up is not counted: time per image is the difference of two runs of different lengths, over the difference of the
lengths. The bare pass is the network without gradients on batches of the same size that are in memory already; the
passes that a method needs are one for fam and similarity-cam, whose own way back is part of the cost.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import subprocess
import sys
import tempfile
import time
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import nn

from benchmarks.measure import machine, peak_mib
from captum_fam.cli.main import main as captum_fam
from captum_fam.models import create_model

_BATCH = 32
_SIZE = (500, 375)


@dataclass(frozen=True)
class Case:
    """What to run: a model and a method, on a number of images, with or without figures."""

    model: str
    method: str
    images: int
    figures: bool
    threads: int


@dataclass(frozen=True)
class Result:
    """Seconds of the clock and of the processor, and the largest memory of the process in MiB."""

    clock_s: float
    cpu_s: float
    peak_mib: float


def draw_images(folder: Path, count: int) -> None:
    """Draw image files; files that are there already stay."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        path = folder / f"{number:05}.jpg"
        if not path.exists():
            generator = torch.Generator().manual_seed(number)
            coarse = torch.rand(1, 3, 6, 8, generator=generator)
            smooth = nn.functional.interpolate(coarse, (_SIZE[1], _SIZE[0]), mode="bicubic")[0]
            noisy = smooth + 0.05 * torch.randn(smooth.shape, generator=generator)
            pixels = (noisy.clamp(0, 1) * 255).byte().permute(1, 2, 0).numpy()
            Image.fromarray(pixels).save(path, quality=90)


def run(case: Case, images: Path) -> Result:
    """Run the command once in this process."""
    torch.set_num_threads(case.threads)
    queries = [str(path) for path in sorted(images.iterdir())[: case.images]]
    support = queries[:5]
    with tempfile.TemporaryDirectory() as out, contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        figures = [] if case.figures else ["--no-figures"]
        clock, cpu = time.perf_counter(), time.process_time()
        code = captum_fam(
            [
                *("explain", *queries, "--support", *support, "--model", case.model, "--weights", "none", *figures),
                *("--methods", case.method, "--batch-size", str(_BATCH), "--quiet", "--out", f"{out}/run"),
            ]
        )
        clock, cpu = time.perf_counter() - clock, time.process_time() - cpu
    assert code == 0
    return Result(clock, cpu, peak_mib())


def run_apart(case: Case, images: Path) -> Result:
    """Run the command in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.explain_files", "--case", json.dumps(asdict(case)), "--files", images]
    finished = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True)
    return Result(**json.loads(finished.stdout.splitlines()[-1]))


def per_image(case: Case, images: Path) -> tuple[float, float]:
    """Seconds per image, of the clock and of the processor, without start-up."""
    shorter = Case(case.model, case.method, case.images // 4, case.figures, case.threads)
    long, short = run_apart(case, images), run_apart(shorter, images)
    count = case.images - shorter.images
    return (long.clock_s - short.clock_s) / count, (long.cpu_s - short.cpu_s) / count


@torch.no_grad()
def bare_pass(name: str, threads: int, rounds: int = 6) -> tuple[float, float]:
    """Seconds per image of the network alone, of the clock and of the processor: the median of several batches."""
    torch.set_num_threads(threads)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net = create_model(name)
    batch = torch.rand(_BATCH, 3, 224, 224)
    net.model(batch)
    times = []
    for _ in range(rounds):
        clock, cpu = time.perf_counter(), time.process_time()
        net.model(batch)
        times.append((time.perf_counter() - clock, time.process_time() - cpu))
    clocks, cpus = zip(*times, strict=True)
    return sorted(clocks)[rounds // 2] / _BATCH, sorted(cpus)[rounds // 2] / _BATCH


def main() -> None:
    """Measure all cases, print the table and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=160, help="images of a timed run")
    parser.add_argument("--many", type=int, default=2000, help="images of the run whose memory is measured")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--models", default="squeezenet1_0,resnet50")
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks/explain.md"))
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--files", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        print(json.dumps(asdict(run(Case(**json.loads(options.case)), options.files))))
        return
    lines, memory = [], []
    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder, "images")
        draw_images(images, max(options.images, options.many))
        for model in options.models.split(","):
            bare_clock, bare_cpu = bare_pass(model, options.threads)
            for method in ("fam", "similarity-cam"):
                plain = per_image(Case(model, method, options.images, False, options.threads), images)
                drawn = per_image(Case(model, method, options.images // 4, True, options.threads), images)
                lines.append(
                    f"| {model} | {method} | {1000 * bare_clock:.0f} | {1000 * plain[0]:.0f} | "
                    f"{plain[0] / bare_clock:.2f} | {plain[1] / bare_cpu:.2f} | {drawn[0] - plain[0]:.2f} | "
                    f"{drawn[1] - plain[1]:.2f} |"
                )
        for count in (options.many // 8, options.many // 2, options.many):
            peak = run_apart(Case("squeezenet1_0", "fam", count, False, options.threads), images).peak_mib
            memory.append(f"| {count:,} | {peak:,.0f} |")
    table = "\n".join(
        [
            "# Explaining files from the command line",
            "",
            f"`python -m benchmarks.explain_files`: {machine()}; JPEG files of {_SIZE[0]} x {_SIZE[1]} pixels, batches "
            f"of {_BATCH}, {options.images} images without figures and {options.images // 4} with figures, random "
            "weights. Start-up is not counted. Files are read in a second thread: where a core is free, this costs "
            "time of the processor and not of the clock.",
            "",
            "| model | method | bare pass, ms an image | `explain --no-figures`, ms | times the bare pass, clock | "
            "the same, processor | more with figures, s, clock | the same, processor |",
            "|---|---|---|---|---|---|---|---|",
            *lines,
            "",
            "Largest memory of the process, SqueezeNet, fam, without figures:",
            "",
            "| images | peak MiB |",
            "|---|---|",
            *memory,
            "",
        ]
    )
    print(table)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(table, encoding="utf-8")
    print(f"written to {options.out}")


if __name__ == "__main__":
    main()
