"""Stage ``bank``: the search of a memory bank of ImageNet's size beside the bare product of matrices."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks.gpu_stages.report import Case, Report
from benchmarks.gpu_stages.timing import measure
from captum_fam.support import MemoryBank

_N_CHECKED = 4


def run(case: Case, report: Report) -> None:
    """Time `classify`, the product of queries and rows, and the product with the selection of k.

    Args:
        case: what the stage is told.
        report: the report of the stage.
    """
    n_rows, features, k = (20_000, 32, 50) if case.is_small else (1_280_000, 128, 200)
    generator = torch.Generator(case.device).manual_seed(0)
    rows = torch.randn(n_rows, features, generator=generator, device=case.device)
    labels = torch.arange(n_rows) % min(1000, n_rows)
    bank = MemoryBank(rows, labels.to(case.device), k=k)
    unit = normalize(rows, dim=1)
    report.fact(rows=n_rows, features=features, k=k, bank_mib=rows.numel() * 4 / 2**20)
    for batch in (1, 4) if case.is_small else (1, 64, 256, 1024):
        if report.stops_before(f"batch {batch}"):
            return
        query = torch.randn(batch, features, generator=generator, device=case.device)
        unit_query = normalize(query, dim=1)

        def product(unit_query: Tensor = unit_query) -> Tensor:
            return unit_query @ unit.T

        def selection(unit_query: Tensor = unit_query) -> object:
            return product(unit_query).topk(k)

        def search(query: Tensor = query) -> object:
            return bank.classify(query)

        times = {"product": product, "product and top k": selection, "classify": search}
        row = {name: measure(call, case.device, 5, 1.0) for name, call in times.items()}
        report.row(
            batch=batch,
            exact=_is_exact(rows, query, bank, k),
            **{f"{name}, ms": timing.ms for name, timing in row.items()},
            **{f"{name}, MiB": timing.peak_mib for name, timing in row.items()},
            ratio=row["classify"].ms / row["product and top k"].ms,
        )


def _is_exact(rows: Tensor, query: Tensor, bank: MemoryBank, k: int) -> bool:
    """Whether the neighbors of some queries are those of a float64 search, up to similarities that are equal."""
    found = bank.classify(query[:_N_CHECKED])
    exact = normalize(query[:_N_CHECKED].double(), dim=1) @ normalize(rows.double(), dim=1).T
    least = exact.topk(k).values[:, -1:]
    similarities = exact.gather(1, found.neighbor_indices.to(exact.device))
    return bool((similarities >= least - 1e-6).all())
