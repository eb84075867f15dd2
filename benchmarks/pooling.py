"""Pooling: what every method shows where the network pools its last layer in another way.

    python -m benchmarks.pooling [--shared ../shared] [--runs runs/novel-classes] [--out docs/results] [--quick]

Both networks of `benchmarks.networks`, headless, on photographs of the novel classes of CUB. Attention pooling is
trained on photographs of the base classes. Images are embedded once, also for `benchmarks.similarities`, and what is in
--runs is not done again. Some ten minutes on one core.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.networks import NETWORKS, Network
from benchmarks.novel_classes import Page, Pairs, Photographs, Protocols, accuracies, run, side_by_side, with_changes
from benchmarks.pages import Results, markdown_table
from benchmarks.pieces import file_name, kept_tensors
from captum_fam import LayerSimilarityCAM
from captum_fam.experiments import FewShot, Mosaic, Panel, TwoPartModel, get_methods
from captum_fam.experiments.pooling_training import train_pooling
from captum_fam.pooling import GAP, GMP, LSE, AttentionPooling, GeM

METHODS = (
    "fam,fam-foil,similarity-cam,similarity-cam-foil,similarity-cam[smooth=5]-foil,grad-cam,grad-cam-foil,"
    "mean-activation,center,uniform"
)
PROTOCOLS: dict[str, tuple[Any, dict[str, int], tuple[str, ...], tuple[str, ...]]] = {
    "few-shot": (FewShot, {"episodes": 6}, ("localization", "swap"), ("energy-positive", "swap", "coverage")),
    "mosaic": (Mosaic, {"mosaics": 16}, (), ("cell-energy", "cell-hit", "cell-auroc")),
}
"""By name: class, options, the measures, and the columns that are shown."""
QUICK = {"few-shot": {"episodes": 2}, "mosaic": {"mosaics": 3}}
TITLES = {"few-shot": "Few-shot, 5-way 1-shot", "mosaic": "2 x 2 mosaics, five supports"}


def trained_attention(given: Photographs, file: Path) -> AttentionPooling:
    """Attention pooling that is trained on the base classes, kept in a file."""
    everything = given.base.activations(torch.arange(len(given.base)))
    pooling = AttentionPooling(everything.shape[1])

    def make() -> dict[str, Tensor]:
        train_pooling(pooling, everything, given.base.labels)
        return pooling.state_dict()

    pooling.load_state_dict(kept_tensors(file, make))
    return pooling.eval().requires_grad_(False)


def poolings(given: Photographs, folder: Path) -> dict[str, nn.Module]:
    """All poolings by the titles of their columns."""
    some = given.base.activations(torch.arange(0, len(given.base), 10))
    # The sharpness is in units of the activation: with 10, the default, LSE of large activations is their maximum.
    gentle = float(f"{1 / float(some.std()):.2g}")
    return {
        "GAP": GAP(),
        "GMP": GMP(),
        "LSE(10)": LSE(),
        f"LSE({gentle:g})": LSE(gentle),
        "GeM(3)": GeM(),
        "attention": trained_attention(given, folder / "attention-pooling.pt"),
    }


def accounts(models: dict[str, TwoPartModel], pairs: Pairs) -> list[str]:
    """The parts of the score for each pooling: their sums over the queries, over the sum of the scores."""
    rows: dict[str, dict[str, str]] = {}
    for name, model in models.items():
        row: dict[str, str] = {}
        for foil in (None, "others"):
            scores = pairs.scores(model, foil)
            cam = LayerSimilarityCAM(scores, model.tail.activation)
            cam.has_warned = True
            details = cam.details(pairs.queries, target=pairs.target)
            assert isinstance(details.shares, dict)
            total = float(sum(part.sum() for part in details.shares.values()))
            for part, values in details.shares.items():
                # Adding zero takes the sign off a zero.
                share = round(float(values.sum()) / total, 3) + 0.0
                row[part + (", foil" if foil else "")] = f"{share:.3f}"
        rows[name] = {
            "positions": f"{_positions_of(model.tail.pooling, pairs.queries):.1f} of {pairs.queries[0, 0].numel()}",
            **row,
        }
    return markdown_table(rows, "pooling")


def _positions_of(pooling: nn.Module, activation: Tensor) -> float:
    """How many positions count for a feature of average size: e to the entropy of its gradient over the positions."""
    leaf = activation.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(pooling(leaf).sum(), leaf)
    if isinstance(pooling, AttentionPooling):
        # Its weights are the same for all channels; the gradient has a term of the softmax beside them.
        with torch.no_grad():
            logits = torch.einsum("bnhw,n->bhw", activation, pooling.query) / len(pooling.query) ** 0.5
            weights = logits.flatten(1).softmax(1)[:, None]
    else:
        weights = gradient.flatten(2)
        weights = weights[weights.sum(2) > 0][None]
        weights = weights / weights.sum(2, keepdim=True)
    return float(torch.special.entr(weights).sum(2).exp().mean())


def section(network: Network, given: Photographs, runs: Path, protocols: Protocols) -> list[str]:
    """What was found on one network."""
    named = poolings(given, runs / network.name)
    models = {name: with_changes(given.model, pooling=pooling) for name, pooling in named.items()}
    lines = [f"## {network.title}", ""]
    names = [method.name for method in get_methods(METHODS)]
    for protocol, options in protocols.items():
        make, usual, measures, columns = PROTOCOLS[protocol]
        found: dict[str, Results] = {}
        for name, model in models.items():
            folder = runs / network.name / file_name(f"{protocol} {name}")
            panel = Panel(get_methods(METHODS), measures)
            found[name] = run(make, model, given, folder, panel=panel, **{**usual, **options})
        lines += [f"### {TITLES[protocol]}", "", *accuracies(found), ""]
        for column in columns:
            lines += [f"`{column}`:", "", *side_by_side(found, column, names, {}), ""]
    pairs = Pairs.of(given.novel)
    return [
        *lines,
        "### What the exact map sums to",
        "",
        f"Parts of the score over {len(pairs.queries)} queries of five classes, as their sum over that of the scores; "
        "`positions`: how many positions count for a feature, as e to the entropy of its weights.",
        "",
        *accounts(models, pairs),
        "",
    ]


NOTE = (
    "Queries and supports are {novel} photographs of each novel class. `attention`: one learned query, a softmax over "
    "the positions, trained on {base} photographs of each base class by the recipe of the linear heads; its weights "
    "are held. GAP, GMP and GeM of non-negative activations are homogeneous, so that gradient x activation is the "
    "pooled feature. LSE(r) is not: gradient x activation gives a softmax-weighted mean, which is above the "
    "log-sum-exp; the map's sum is off by its constant, -log(P) / r (`bias`), and by the `rest`. The second sharpness "
    "is one over the standard deviation of the activations. `-foil`: minus the mean of the other classes. Only correct "
    "queries are explained, so that a column with another accuracy has other queries."
)


def main(arguments: Sequence[str] | None = None, networks: Mapping[str, Network] = NETWORKS) -> None:
    """Run what is missing and write the page."""
    page = Page("pooling", "Pooling", __doc__, NOTE, section, PROTOCOLS, QUICK)
    page.write(arguments, networks)


if __name__ == "__main__":
    main()
