"""How much of the score the exact map explains, in every family of embedding model at a late and an early layer.

    python -m benchmarks.coverage [NAME ...] [--threads 1] [--out docs/results/coverage.md]

Each NAME is a family of `benchmarks.families`, or the package before the slash. Without one all are run, in a few
minutes on two cores, and the table is written; with one the rows are printed, and written only where --out says.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from benchmarks.families import BIAS, CLASS_TOKEN, FAMILIES, REGISTERS, Family, Place, random_images, randomize
from benchmarks.measure import machine
from captum_fam import LayerSimilarityCAM

MODULE = "benchmarks.coverage"
QUERIES, SUPPORTS = 2, 3
REST = {torch.float32: 1e-4, torch.float64: 1e-9}
COVERAGE = 0.99
BIAS_DIFFERENCE = 1e-6
PARTS = (CLASS_TOKEN, REGISTERS, BIAS)


@dataclass(frozen=True)
class Account:
    """What became of the score at one layer of a family; parts in units of the score.

    Attributes:
        family: whose.
        place: where.
        positions: of the map.
        score: mean over the queries.
        plain: sum of gradient x activation over the positions, mean over the queries.
        coverage: of each query.
        parts: of each query, without map and rest.
        rest: the largest magnitude, by precision.
    """

    family: Family
    place: Place
    positions: tuple[int, ...]
    score: float
    plain: float
    coverage: Tensor
    parts: dict[str, Tensor]
    rest: dict[torch.dtype, float]

    @property
    def bias(self) -> Tensor:
        """The part of biases that no position owns, ``(B,)``."""
        return self.parts.get(BIAS, torch.zeros_like(self.coverage))

    def misses(self, last: Account) -> list[str]:
        """The bars that it misses, as text, beside the family's last layer; there is none for what is not seen."""
        if self.family.unseen:
            return []
        missed = [
            f"rest in {str(dtype).removeprefix('torch.')}"
            for dtype, rest in self.rest.items()
            if not rest <= REST[dtype if dtype == torch.float32 else self.family.precision]  # NaN is a miss too
        ]
        if not self.place.beside and not bool(((1 - self.coverage).abs() <= 1 - COVERAGE).all()):
            missed.append("coverage")
        if self.place.beside == last.place.beside and not bool(
            ((self.bias - last.bias).abs() <= BIAS_DIFFERENCE).all()
        ):
            missed.append("bias without a position")
        return missed


def account(family: Family, seed: int = 0) -> list[Account]:
    """Build, randomise and explain one family, in both precisions, at its last and at its early layer."""
    model = randomize(family.build(), seed)
    images = random_images(QUERIES + SUPPORTS, family.size, seed)
    places = (family.last, family.early)
    rests: list[dict[torch.dtype, float]] = [{} for _ in places]
    for dtype in REST:
        model.to(dtype)
        queries, supports = images.to(dtype).split([QUERIES, SUPPORTS])
        with torch.no_grad():
            embeddings = model(supports)
        shares = [in_units_of_score(model, place, queries, embeddings) for place in places]
        for rest, one in zip(rests, shares, strict=True):
            rest[dtype] = float(one["rest"].abs().max())
    accounts = []
    for place, rest, one in zip(places, rests, shares, strict=True):
        positions, plain = gradient_times_activation(model, place, queries, embeddings)
        accounts.append(
            Account(
                family,
                place,
                positions=tuple(positions),
                score=float(one["score"].mean()),
                plain=float((plain / one["score"]).mean()),
                coverage=one["coverage"],
                parts={part: one[part] for part in PARTS if part in one},
                rest=rest,
            )
        )
    return accounts


def in_units_of_score(model: nn.Module, place: Place, queries: Tensor, embeddings: Tensor) -> dict[str, Tensor]:
    """The score, the coverage, and all shares over the score, each ``(B,)``."""
    cam = LayerSimilarityCAM(model, place.layer, token_grid=place.grid)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning)  # a small coverage is what the table is about
        details = cam.details(queries, support=embeddings)
    assert isinstance(details.shares, dict)  # lists are for lists of layers
    assert isinstance(details.coverage, Tensor)
    assert details.comparison is not None
    score = (details.comparison.support_weights * details.comparison.explained).sum(1)
    relative = {part: share / score for part, share in details.shares.items()}
    return {**relative, "score": score, "coverage": details.coverage}


def gradient_times_activation(
    model: nn.Module, place: Place, queries: Tensor, embeddings: Tensor
) -> tuple[torch.Size, Tensor]:
    """The trivial baseline: plain autograd from the cosine's inner product, the query's own length held constant.

    Returns:
        The positions and the sums over them, ``(B,)``.
    """
    kept: list[Tensor] = []

    def keep(_: nn.Module, __: object, output: Tensor) -> Tensor:
        kept.append(output.detach().requires_grad_())
        return kept[0].clone()  # what changes it in place must not reach the leaf

    handle = model.get_submodule(place.layer).register_forward_hook(keep)
    try:
        embedding = model(queries)
    finally:
        handle.remove()
    length = embedding.detach().norm(dim=1, keepdim=True)
    inner = (embedding / length * normalize(embeddings, dim=1).mean(0)).sum()
    (gradient,) = torch.autograd.grad(inner, kept)
    product = gradient * kept[0].detach()
    product = product if place.grid is None else place.grid(product)
    return product.shape[2:], product.flatten(1).sum(1)


def row(one: Account, last: Account) -> str:
    """One line of the table."""
    parts = [f"{float(one.parts[part].mean()):.3f}" if part in one.parts else "–" for part in PARTS]
    remarks = [f"**misses: {', '.join(one.misses(last))}**"] if one.misses(last) else []
    if one.family.unseen:
        remarks.append(f"not seen: {one.family.unseen}")
    if one.family.precision != torch.float64:
        remarks.append(f"computes in {str(one.family.precision).removeprefix('torch.')}")
    cells = [
        one.family.name,
        f"`{one.place.layer}`",
        " x ".join(map(str, one.positions)),
        f"{one.score:.2f}",
        f"{one.plain:.2f}" if abs(one.plain) < 1000 else f"{one.plain:.0e}",
        " ".join(f"{value:.3f}" for value in one.coverage.tolist()),
        *parts,
        *(f"{one.rest[dtype]:.0e}" for dtype in REST),
        "; ".join(remarks),
    ]
    return f"| {' | '.join(cells)} |"


def head(families: list[list[Account]], failed: list[str], seconds: float, command: str) -> list[str]:
    """The page above the table."""
    seen = [(one, accounts[0]) for accounts in families for one in accounts if not one.family.unseen]
    missing = sum(bool(one.misses(last)) for one, last in seen)
    distributions = importlib.metadata.packages_distributions()
    packages = dict.fromkeys(accounts[0].family.name.partition("/")[0] for accounts in families)
    names = [distributions[package][0] for package in packages if package in distributions]
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
    return [
        "# How much of the score the exact map explains",
        "",
        f"Written by `{command}` in {seconds / 60:.1f} minutes on {machine()}; {versions}; seed 0.",
        "",
        f"{len(families)} families of embedding models with random weights, {QUERIES} "
        f"queries against {SUPPORTS} supports, random smooth images. Biases, scales and shifts of norms, running "
        "statistics, LayerScale, position embeddings, class tokens and registers are random too, so that no part is "
        "zero by itself. Each family at its last layer with positions and at an early one, the first stage or the "
        "input of the first block.",
        "",
        "Everything in units of the score, the mean cosine, which has its own column. `gradient x activation`: the "
        "sum of the plain autograd map, with the length of the embedding held constant. `coverage`: the sum of "
        "`LayerSimilarityCAM`'s map, one value per query. Parts that lie on no position, each computed by itself: "
        "`class token`, `registers`, and `bias`, those that act behind the pooling (in a few families on a pooled "
        "context or on tokens mixed in between). `rest`: what no part accounts for, the largest magnitude over the "
        "queries.",
        "",
        f"Bars: rest at most {REST[torch.float32]:.0e} in float32 and {REST[torch.float64]:.0e} in float64; coverage "
        f"within {1 - COVERAGE:.2f} of one where there is no class token, no register and no such bias; `bias` the "
        "same at both layers where biases between the two act at positions. What is not seen has no bars: its rest is "
        "the account.",
        "",
        f"{len(seen) - missing} of {len(seen)} rows meet all bars."
        + (f" {missing} miss one, marked at the end of the row." if missing else "")
        + (f" Not explained: {'; '.join(failed)}." if failed else ""),
        "",
        "| family | layer | positions | score | gradient x activation | coverage | class token | registers | bias "
        "| rest, float32 | rest, float64 | |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]


def chosen(names: list[str]) -> list[Family]:
    """The families of these names or packages; all without one."""
    return [
        family for name, family in FAMILIES.items() if not names or name in names or name.partition("/")[0] in names
    ]


def main() -> None:
    """Explain the families and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="family or package; default: all")
    parser.add_argument("--threads", type=int, default=1, help="of torch; default: %(default)s, for small images best")
    parser.add_argument("--out", type=Path, help="default: docs/results/coverage.md, if no NAME is given")
    options = parser.parse_args()
    known = {*FAMILIES, *(name.partition("/")[0] for name in FAMILIES)}
    unknown = sorted(set(options.names) - known)
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}; families: {', '.join(FAMILIES)}")
    out = options.out or (None if options.names else Path("docs/results/coverage.md"))
    torch.set_num_threads(options.threads)
    start = time.monotonic()
    families: list[list[Account]] = []
    failed: list[str] = []
    rows: list[str] = []
    for family in chosen(options.names):
        try:
            families.append(account(family))
        except Exception as error:  # a family that cannot be explained is a finding, and the others go on
            failed.append(f"{family.name} ({type(error).__name__}: {str(error).splitlines()[0]})")
            print(failed[-1], flush=True)
            continue
        rows += [row(one, families[-1][0]) for one in families[-1]]
        print(*rows[-2:], sep="\n", flush=True)
    seconds = time.monotonic() - start
    command = " ".join([f"python -m {MODULE}", *options.names])
    lines = [*head(families, failed, seconds, command), *rows]
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text("\n".join(lines) + "\n")
        print(f"written to {out}, {seconds:.0f} s")


if __name__ == "__main__":
    main()
