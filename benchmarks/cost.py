"""Time and memory of maps over a bare pass as the work grows, with the fitted exponents.

    python -m benchmarks.cost [--quick] [--rounds 5] [--runs runs/cost] [--out docs/benchmarks/cost.md]

Five sweeps: the network, the size of the images, the batch, the number of supports, and the rows of a memory bank. Each
case is a process of its own on one thread of the CPU, and a file of ``--runs``: a case that is there is not measured
again. The whole takes about 10 minutes of a quiet machine. Weights are random; a cost does not depend on them.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import timm
import torch
from captum.attr import LayerGradCam
from torch import Tensor

from benchmarks.command_line import command, parser_for
from benchmarks.measure import (
    cpu_seconds,
    fitted_exponent,
    last_line_of,
    paired_seconds,
    peak_mib,
    peak_tensor_mib,
    print_cost,
    quartiles,
    resident_mib,
)
from benchmarks.pages import markdown_table, write_page
from benchmarks.pieces import kept
from captum_fam import LayerFAM, LayerSimilarityCAM, MemoryBank, SimilarityToSupport, SupportSet, TokenGrid

MODULE = "benchmarks.cost"
# The last layer before the pooling, or for tokens the last before the last attention.
NETWORKS = {
    "resnet18": "layer4",
    "resnet50": "layer4",
    "resnet101": "layer4",
    "convnext_tiny": "norm_pre",
    "vit_small_patch16_224": "blocks.10",
    "tf_efficientnet_lite0": "bn2",
}
METHODS = ("LayerFAM", "LayerSimilarityCAM", "LayerSimilarityCAM, foil", "captum LayerGradCam")
SIZES, BATCHES, SUPPORTS = (112, 160, 224, 320, 448), (1, 4, 16, 64), (1, 10, 100, 1000, 10000)
ROWS = (10**4, 10**5, 10**6, 10**7)
FEATURES, NEIGHBORS, QUERIES = 128, 200, 16
# A bank of 10^7 rows of 128 numbers takes 5 GB.
LEAST_FREE_GIB = 9


@dataclass(frozen=True)
class Work:
    """What is explained, by every method.

    Attributes:
        network: name of the network in timm.
        side: of the images, in pixels.
        batch: number of images.
        supports: number of embedded supports, in five classes, or in one class if they are fewer.
    """

    network: str = "resnet18"
    side: int = 224
    batch: int = 1
    supports: int = 10


@dataclass(frozen=True)
class Measured:
    """The cost of a call: CPU seconds, their ratio to the bare pass with quartiles, and memory of tensors in MiB."""

    seconds: float
    ratio: float
    lower: float
    upper: float
    mib: float


@dataclass(frozen=True)
class BankMeasured:
    """The cost of a search: CPU seconds with quartiles, and the resident memory besides the embeddings, in MiB."""

    seconds: float
    lower: float
    upper: float
    mib: float


def build(work: Work) -> tuple[dict[str, Callable[[], object]], Callable[[], object]]:
    """The calls to measure, by method, and the bare pass beside them.

    Args:
        work: what is explained.
    """
    torch.manual_seed(0)
    is_vit = work.network.startswith("vit")
    model = timm.create_model(work.network, num_classes=0, **({"img_size": work.side} if is_vit else {})).eval()
    layer = model.get_submodule(NETWORKS[work.network])
    images = torch.rand(work.batch, 3, work.side, work.side)

    def bare() -> Tensor:
        with torch.no_grad():
            return model(images)

    n_classes = min(5, work.supports)
    support = SupportSet(torch.rand(work.supports, bare().shape[1]), torch.arange(work.supports) % n_classes)
    scores = SimilarityToSupport(model, support)
    # A support of one class has no other class as a foil: it is contrasted with the mean of a gallery of one row.
    foil = {"foil": "others"} if n_classes > 1 else {"foil": "gallery", "gallery": torch.rand(1, bare().shape[1])}
    contrasted = SimilarityToSupport(model, support, **foil)
    grid = {"token_grid": TokenGrid()} if is_vit else {}
    made = (
        LayerFAM(scores, layer, **grid),
        LayerSimilarityCAM(scores, layer, **grid),
        LayerSimilarityCAM(contrasted, layer, **grid),
        LayerGradCam(scores, layer),
    )
    for ours in made[:3]:
        ours.has_warned = True  # random weights, so that no layer explains anything
    calls = [partial(one.attribute, images, target=0) for one in made]
    return dict(zip(METHODS, calls, strict=True)), bare


def measure(work: Work, rounds: int) -> dict[str, Measured]:
    """Measure the bare pass and all methods.

    Args:
        work: what is explained.
        rounds: number of calls of each method, each between two bare passes.

    Returns:
        Costs by method, and that of the bare pass under ``"bare"``.
    """
    calls, bare = build(work)
    found = {}
    for name, call in {"bare": bare, **calls}.items():
        pairs = paired_seconds(call, bare, rounds)
        lower, ratio, upper = quartiles([taken / beside for taken, beside in pairs])
        found[name] = Measured(median(taken for taken, _ in pairs), ratio, lower, upper, peak_tensor_mib(call))
    return found


def measure_bank(rows: int, rounds: int) -> BankMeasured:
    """Search a random bank, and go through the supports of all queries.

    Args:
        rows: number of rows of the bank.
        rounds: number of searches.
    """
    generator = torch.Generator().manual_seed(0)
    # What a first search loads is no cost of the rows.
    warm = torch.rand(1000, FEATURES)
    MemoryBank(warm, torch.zeros(1000, dtype=torch.int64)).support(warm)
    bare = resident_mib()
    bank = MemoryBank(
        torch.empty(rows, FEATURES).normal_(generator=generator),
        torch.randint(1000, (rows,), generator=generator),
        k=NEIGHBORS,
    )
    query = torch.randn(QUERIES, FEATURES, generator=generator)

    def search() -> None:
        vote = bank.classify(query)
        for supports in bank.support(query, vote=vote):
            supports.sum()

    search()
    besides = peak_mib() - bare - rows * FEATURES * 4 / 2**20
    lower, seconds, upper = quartiles([cpu_seconds(search) for _ in range(rounds)])
    return BankMeasured(seconds, lower, upper, besides)


def sweeps(quick: bool) -> dict[str, list[Work]]:
    """The cases of the four sweeps of maps, by what grows.

    Args:
        quick: two sizes of one small network only.
    """
    if quick:
        return {
            "network": [Work(side=64)],
            "side": [Work(side=side) for side in (64, 128)],
            "batch": [Work(side=64, batch=batch) for batch in (1, 2)],
            "supports": [Work(side=64, supports=supports) for supports in (1, 100)],
        }
    return {
        "network": [Work(name) for name in NETWORKS],
        "side": [Work(name, side) for name in ("resnet18", "vit_small_patch16_224") for side in SIZES],
        "batch": [Work(batch=batch) for batch in BATCHES],
        "supports": [Work(supports=supports) for supports in SUPPORTS],
    }


def free_gib() -> float:
    """Memory that is available on this machine, in GiB (Linux)."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")) / 2**20


def measured(folder: Path, case: dict[str, Any]) -> dict[str, Any]:
    """The numbers of a case, from its file or from a process that measures it.

    Args:
        folder: of the files.
        case: options of the process.
    """
    path = folder / ("-".join(f"{name}-{value}" for name, value in case.items()) + ".json")
    content: dict[str, Any] = kept(path, lambda: last_line_of(MODULE, **case))
    return content


def section(grows: str, found: Mapping[Work, Mapping[str, Measured]]) -> list[str]:
    """A table of a sweep, with a table of the exponents for each network.

    Args:
        grows: name of the field of the work that grows.
        found: costs by method, of each case.
    """
    rows = {}
    for work, costs in found.items():
        name = f"{work.network}, {work.side}" if grows == "side" else str(getattr(work, grows))
        bare = costs["bare"]
        rows[name] = {"bare pass": f"{bare.seconds:.3f} s, {bare.mib:.1f} MiB"}
        for method in METHODS:
            one = costs[method]
            ratio = f"{one.ratio:.2f} [{one.lower:.2f}, {one.upper:.2f}]"
            rows[name][method] = f"{ratio}, {one.mib / bare.mib:.2f}"
    lines = markdown_table(rows, grows)
    for network in dict.fromkeys(work.network for work in found):
        of = {getattr(work, grows): costs for work, costs in found.items() if work.network == network}
        if len(of) > 1:
            lines += ["", *markdown_table(exponents(of), f"exponent of {grows}, {network}")]
    return lines


def exponents(found: Mapping[int, Mapping[str, Measured]]) -> dict[str, dict[str, str]]:
    """How time and memory of the bare pass and of each method grow.

    Args:
        found: costs by method, of each size.
    """
    rows = {}
    for method in ("bare", *METHODS):
        ones = [costs[method] for costs in found.values()]
        rows[method] = {
            "time": str(fitted_exponent(list(found), [one.seconds for one in ones])),
            "memory": str(fitted_exponent(list(found), [one.mib for one in ones])),
        }
    return rows


def bank_section(found: Mapping[int, Mapping[str, float] | None]) -> list[str]:
    """The table of the bank, with the exponent.

    Args:
        found: numbers by the number of rows; None where the machine had too little memory.
    """
    rows = {}
    for count, one in found.items():
        size = f"{count * FEATURES * 4 / 2**20:.0f}"
        if one is None:
            rows[f"{count:,}"] = {"its MiB": size, "search, s": f"not measured: under {LEAST_FREE_GIB} GiB free"}
            continue
        seconds = f"{one['seconds']:.4f} [{one['lower']:.4f}, {one['upper']:.4f}]"
        rows[f"{count:,}"] = {"its MiB": size, "search, s": seconds, "memory besides, MiB": f"{one['mib']:.0f}"}
    measured = {count: one for count, one in found.items() if one is not None}
    lines = markdown_table(rows, "rows")
    if len(measured) > 1:
        exponent = fitted_exponent(list(measured), [one["seconds"] for one in measured.values()])
        lines += ["", f"Exponent of rows: time {exponent}."]
    return lines


def main(arguments: list[str] | None = None) -> None:
    """Measure all cases and write the page.

    Args:
        arguments: of the command line. Default: None, those of this process.
    """
    parser = parser_for(
        MODULE,
        __doc__,
        runs="runs/cost",
        out="docs/benchmarks/cost.md",
        shared=False,
        quick="two small sizes of everything",
    )
    parser.add_argument("--rounds", type=int, default=5, help="calls of each case; default: %(default)s")
    parser.add_argument("--case", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if options.case:
        rows = options.case.pop("rows", None)
        rounds = options.case.pop("rounds")
        if rows:
            print_cost(measure_bank(rows, rounds))
        else:
            print(json.dumps({name: asdict(one) for name, one in measure(Work(**options.case), rounds).items()}))
        return
    start = time.perf_counter()
    sections: list[str] = []
    for grows, works in sweeps(options.quick).items():
        found = {}
        for work in works:
            costs = measured(options.runs, {**asdict(work), "rounds": options.rounds})
            found[work] = {name: Measured(**one) for name, one in costs.items()}
            ratios = (f"{one.ratio:.2f}" for one in found[work].values())
            print(f"{time.perf_counter() - start:.0f} s", *asdict(work).values(), *ratios, flush=True)
        sections += [f"## {grows.capitalize()}", "", *section(grows, found), ""]
    banks: dict[int, dict[str, float] | None] = {}
    for count in ROWS[:2] if options.quick else ROWS:
        case = {"rows": count, "rounds": options.rounds}
        fits = count < ROWS[-1] or free_gib() > LEAST_FREE_GIB
        banks[count] = measured(options.runs, case) if fits else None
        print(f"{time.perf_counter() - start:.0f} s", "bank", count, banks[count], flush=True)
    sections += ["## Rows of a memory bank", "", *bank_section(banks)]
    note = (
        "Networks of timm with random weights, the last layer, embedded supports of five classes; one thread of the "
        "CPU. Where nothing else is said: ResNet-18, 224 pixels, batch 1, 10 supports. Time: CPU time over that of a "
        f"bare `no_grad` pass, median of {options.rounds} pairs [quartiles], then memory: the most that tensors held "
        "at once, over that of the bare pass. Grad-CAM is Captum's on `SimilarityToSupport`. An exponent p says that "
        "the cost grows as work to the power p, by least squares of the logarithms, with its 95 % interval. The work "
        "of a size is its side in pixels, so that the number of pixels has the exponent 2. A bank has "
        f"{FEATURES} features in float32; a search is for {QUERIES} queries and {NEIGHBORS} neighbors with all "
        "supports."
    )
    write_page(options.out, "Cost as work grows", command(parser, options), sections, note=note, seed="seed 0")


if __name__ == "__main__":
    main()
