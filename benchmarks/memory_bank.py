"""Time and memory of a search in a bank the size of ImageNet's, in a process of its own.

    python -m benchmarks.memory_bank [--rows 1281167] [--out docs/benchmarks/memory-bank.md]

A random bank, K = 200. Memory is the growth of the process's peak from before the bank was made, minus the embeddings:
labels, checks and everything that a search and the supports need.
The neighbors of some queries are compared with those of a plain search that sorts all similarities in float64.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.measure import last_line_of, machine, peak_mib, print_cost, resident_mib
from captum_fam import MemoryBank
from captum_fam.support import Vote

N_CHECKED = 8


@dataclass(frozen=True)
class Case:
    """What to measure."""

    rows: int = 1_281_167
    features: int = 128
    batch: int = 64
    k: int = 200
    threads: int = 1


@dataclass(frozen=True)
class Result:
    """Memory besides the embeddings after the search and after going through all supports, time, exactness."""

    bank_mib: float
    classify_mib: float
    support_mib: float
    classify_s: float
    exact: bool


def measure(case: Case) -> Result:
    """Build the bank in place, search it, then check."""
    torch.set_num_threads(case.threads)
    generator = torch.Generator().manual_seed(0)
    warm = torch.rand(1000, case.features)
    MemoryBank(warm, torch.zeros(1000, dtype=torch.int64)).support(warm)
    bare = resident_mib()
    rows = torch.empty(case.rows, case.features).normal_(generator=generator)
    bank = MemoryBank(rows, torch.randint(1000, (case.rows,), generator=generator), k=case.k)
    query = torch.randn(case.batch, case.features, generator=generator)
    bank_mib = rows.numel() * 4 / 2**20
    start = time.perf_counter()
    vote = bank.classify(query)
    taken = time.perf_counter() - start
    classified = peak_mib() - bare - bank_mib
    for supports in bank.support(query, vote=vote):
        supports.sum()
    supported = peak_mib() - bare - bank_mib
    return Result(bank_mib, classified, supported, taken, _is_exact(rows, query, vote))


def _is_exact(rows: Tensor, query: Tensor, vote: Vote) -> bool:
    lengths = rows.double().norm(dim=1)
    for b in range(min(N_CHECKED, len(query))):
        one = query[b].double()
        cosines = (rows.double() @ one) / (lengths * one.norm())
        best = cosines.argsort(descending=True)[: vote.similarities.shape[1]]
        if set(best.tolist()) != set(vote.neighbor_indices[b].tolist()):
            return False
        if not torch.allclose(cosines[best].float(), vote.similarities[b], atol=1e-6):
            return False
    return True


def main() -> None:
    """Measure in another process, print the table and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=Case.rows)
    parser.add_argument("--threads", type=int, default=Case.threads)
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks/memory-bank.md"))
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        print_cost(measure(Case(**json.loads(options.case))))
        return
    torch.set_num_threads(options.threads)
    lines = []
    for batch in (1, 64):
        case = Case(rows=options.rows, batch=batch, threads=options.threads)
        result = Result(**last_line_of("benchmarks.memory_bank", **asdict(case)))
        lines.append(
            f"| {case.rows:,} x {case.features} | {result.bank_mib:.0f} | {case.k} | {batch} | {result.classify_s:.2f} "
            f"| {result.classify_mib:.0f} | {result.support_mib:.0f} | {'yes' if result.exact else 'NO'} |"
        )
    table = "\n".join(
        [
            "# Searching a memory bank",
            "",
            f"`python -m benchmarks.memory_bank`: {machine()}; float32 on the CPU.",
            "Memory is the growth of the process's peak from before the bank was made, minus the embeddings. Exact: "
            f"the neighbors of {N_CHECKED} queries are those of a float64 search that sorts all similarities.",
            "",
            "| bank | its MiB | K | batch | classify, s | classify, MiB | with supports, MiB | exact |",
            "|---|---|---|---|---|---|---|---|",
            *lines,
            "",
        ]
    )
    print(table)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(table, encoding="utf-8")
    print(f"written to {options.out}")


if __name__ == "__main__":
    main()
