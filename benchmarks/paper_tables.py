"""Tables I, II and IV of the paper in small: networks trained on CUB photographs, beside the trivial baselines.

    python -m benchmarks.paper_tables [few-shot] [retrieval] [--shared ../shared] [--runs runs/paper]

Every network is trained by `captum-fam train` and measured by `captum-fam evaluate`; the commands stand above the
tables. What is in --runs is not done again, so that checkpoints trained elsewhere may be put there. From nothing the
few-shot networks take two hours on two cores, the rest half an hour.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from benchmarks.measure import machine
from benchmarks.pages import call, read

METHODS = "fam,similarity-cam,similarity-cam-foil,grad-cam,mean-activation,center-box,uniform"
FEW_SHOT = "--val-episodes 600 --precision bfloat16 --device cpu --tensorboard"
HEAD = "--loss {loss} --pooling {pooling} --embedding-size 512 --way 16 --steps 1000 --period 100 --hold-out 5"
MEASURES = ("energy", "lift", "iou", "swap", "drop", "increase", "cell-energy", "cell-hit", "cell-auroc")


@dataclass(frozen=True)
class Row:
    """A network: how it is trained, how it is given to `evaluate`, and what the paper has for its like."""

    name: str
    train: str | None
    model: str
    paper: Mapping[str, float] | None
    """By measure."""
    curve: str = ""
    """The column of log.csv that tells the best checkpoint."""
    checkpoints: int = 0
    """Lines of log.csv when it is done."""


def few_shot_rows(runs: Path) -> list[Row]:
    """The networks of Tables I and II that a CPU trains in an hour."""
    lengths = {"conv4net": 100, "conv64f": 48}
    paper = {
        "conv4net": {"energy": 0.3848, "iou": 0.4345, "drop": 0.1436, "increase": 0.4459},
        "conv64f": {"energy": 0.3600, "iou": 0.4502, "drop": 0.1467, "increase": 0.3979},
    }
    return [
        Row(
            name,
            f"few-shot --model {name} --epochs {epochs} --episodes 96 {FEW_SHOT}",
            f"--model {name} --weights {runs / name / 'best.safetensors'}",
            paper[name],
            "val_accuracy",
            epochs,
        )
        for name, epochs in lengths.items()
    ]


def retrieval_rows(runs: Path, shared: Path) -> list[Row]:
    """Table IV: heads on a frozen SqueezeNet instead of a trained BN-Inception."""
    weights = f"--weights {shared}/weights/squeezenet1_0_imagenet.pth"
    rows = [
        Row(f"none-{pooling}", None, f"--model squeezenet {weights} --pooling {pooling}", None)
        for pooling in ("gap", "gmp")
    ]
    paper = {
        "multi-similarity": {"energy": 0.4664, "iou": 0.5229},
        "margin": {"energy": 0.4627, "iou": 0.5223},
    }
    for loss, published in paper.items():
        for pooling in ("gap", "gmp"):
            name = f"{loss}-{pooling}"
            head = f"--head {runs / name / 'best-head.safetensors'}"
            options = HEAD.format(loss=loss, pooling=pooling)
            train = f"metric --model squeezenet1_0 {weights} --freeze-backbone {options}"
            # The paper's networks pool by the maximum.
            beside = published if pooling == "gmp" else None
            model = f"--model squeezenet {weights} --pooling {pooling} {head}"
            rows.append(Row(name, f"{train} --cache {runs}/features", model, beside, "val_recall@1", 10))
    return rows


def log(row: Row, runs: Path) -> list[dict[str, str]]:
    """The lines of a training's log so far."""
    path = runs / row.name / "log.csv"
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def prepare(row: Row, shared: Path, runs: Path) -> list[str]:
    """Train a row's network where that is not done; gives the command."""
    if row.train is None:
        return []
    command = f"train {row.train} --data {shared}/data/cub50 --out {runs / row.name}"
    if len(log(row, runs)) < row.checkpoints:
        call(f"{command} --quiet")
    return [f"captum-fam {command}"]


def measured(row: Row, protocols: Sequence[str], shared: Path, runs: Path) -> tuple[list[str], list[Path]]:
    """Run the protocols on a row's network; gives the commands and the folders of their results."""
    commands, folders = [], []
    for protocol in protocols:
        name, _, options = protocol.partition(" ")
        kind = "-faithfulness" if "faithfulness" in options else ""
        folders.append(runs / f"{row.name}-{name}{kind}")
        data = f"--data {shared}/data/cub50"
        told = f"evaluate {name} {row.model} {data} --methods {METHODS} {options}".rstrip()
        commands.append(f"{told} --out {folders[-1]}")
        call(commands[-1])
    return [f"captum-fam {command}" for command in commands], folders


def section(row: Row, folders: Sequence[Path]) -> list[str]:
    """One network's results: methods by the measures of all protocols."""
    results = [read(folder) for folder in folders]
    cells: dict[str, dict[str, str]] = {}
    for result in results:
        for method, values in result.cells.items():
            # The swap of the mosaics comes last, and the first one is meant.
            cells[method] = values | cells.get(method, {})
    measures = [name for name in MEASURES if any(name in values for values in cells.values())]
    lines = [f"## {row.name}", "", f"Model: {', '.join(results[0].model)}.", ""]
    lines += [f"| method | {' | '.join(measures)} |", f"|---|{'---|' * len(measures)}"]
    if row.paper is not None:
        found = (row.paper.get(measure) for measure in measures)
        lines.append(f"| *fam in the paper* | {' | '.join('' if v is None else f'*{v:.3f}*' for v in found)} |")
    lines += [
        f"| {method} | {' | '.join(values.get(measure, '–') for measure in measures)} |"
        for method, values in cells.items()
    ]
    return [*lines, ""]


def page(name: str, title: str, rows: Sequence[Row], protocols: Sequence[str], shared: Path, runs: Path) -> list[str]:
    """A page of docs/results."""
    commands: list[str] = []
    sections: list[str] = []
    for row in rows:
        trained = prepare(row, shared, runs)
        evaluated, folders = measured(row, protocols, shared, runs)
        commands += [*trained, *evaluated]
        sections += section(row, folders)
    return [
        f"# {title}",
        "",
        f"Written by `python -m benchmarks.paper_tables {name}`, which ran",
        "",
        "```",
        *commands,
        "```",
        "",
        f"on {machine()}; seed 1 of the trainings, 0 of episodes and mosaics. "
        "Half-widths (±) are of the 95 % interval; the paper gives none.",
        "",
        f"![Loss and validation measure of the trainings](../figures/paper-{name}.png)",
        "",
        *sections,
    ]


def curves(rows: Sequence[Row], runs: Path, file: Path) -> None:
    """Loss and validation measure of every trained row."""
    trained = [row for row in rows if row.train]
    figure = Figure(figsize=(7.5, 3.0), layout="constrained")
    for ax, column in zip(figure.subplots(1, 2), ("loss", trained[0].curve), strict=True):
        for row in trained:
            values = [float(line[column]) for line in log(row, runs)]
            ax.plot(range(1, len(values) + 1), values, label=row.name)
        ax.set(xlabel="checkpoint", title=column.replace("_", " "))
        ax.grid(alpha=0.3)
    figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    figure.savefig(file, dpi=130)


def main() -> None:
    """Train what is missing, measure, write the pages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="few-shot, retrieval; default: both")
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--runs", type=Path, default=Path("runs/paper"))
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    options = parser.parse_args()
    pages = {
        "few-shot": (
            "Tables I and II: few-shot networks trained here",
            few_shot_rows(options.runs),
            (
                "few-shot --episodes 2000 --measures localization,swap",
                "few-shot --episodes 100 --measures faithfulness",
                "mosaic",
            ),
        ),
        "retrieval": (
            "Table IV: Multi-Similarity and Margin heads trained here",
            retrieval_rows(options.runs, options.shared),
            ("retrieval --measures localization,swap", "mosaic --mosaics 60 --split retrieval-test"),
        ),
    }
    unknown = sorted(set(options.names) - set(pages))
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}")
    for name in options.names or pages:
        title, rows, protocols = pages[name]
        lines = page(name, title, rows, protocols, options.shared, options.runs)
        curves(rows, options.runs, options.out.parent / "figures" / f"paper-{name}.png")
        (options.out / f"paper-{name}.md").write_text("\n".join(lines))
        print(f"written to {options.out / f'paper-{name}.md'}")


if __name__ == "__main__":
    main()
