"""Table III of the paper in small: a network trained by NPID and by MoCo, beside the same network with random weights.

    python -m benchmarks.contrastive_tables [cub] [scenes] [--shared ../shared] [--runs runs/contrastive] [--quick]

The network is `benchmarks/small_resnet.py`, at 64 x 64 pixels: on CUB photographs and on planted scenes. It is trained
by `captum-fam train contrastive` and measured by `captum-fam evaluate contrastive` and `evaluate mosaic`. What is in
--runs is not done again. From nothing the trainings take about fifteen minutes each for CUB and six for scenes on one
core, and the measurements ten minutes in all; --quick trains for two epochs on fewer images and measures fewer mosaics.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

from benchmarks.command_line import command, parser_for
from benchmarks.pages import Results, call, markdown_table, read, write_page

MODEL = "--model benchmarks/small_resnet.py:small_resnet"
METHODS = (
    "fam,fam-foil,similarity-cam,similarity-cam-foil,similarity-cam[smooth=3],similarity-cam[smooth=3]-foil,grad-cam,"
    "grad-cam-foil,mean-activation,center,center-box,uniform"
)
MEASURES = ("energy", "lift", "iou", "swap", "cell-energy", "cell-hit", "cell-auroc")
NEIGHBORS = 20
TRAINING = f"--batch-size 64 --hold-out 5 --k {NEIGHBORS} --precision bfloat16 --device cpu"
# Random weights with the batch statistics of the images, as those of the trained networks have: the steps are too small
# to change a weight.
RANDOM = "npid --epochs 2 --learning-rate 1e-30 --weight-decay 0"
# A few thousand steps on a few thousand small images: a larger rate, and views that keep more of the object than those
# of ImageNet; for NPID also a softer softmax and views that keep more of the colors.
NPID = "npid --learning-rate 0.1 --schedule cosine --temperature 0.1 --augmentation v2 --smallest-crop 0.4"
MOCO = "moco --learning-rate 0.1 --smallest-crop 0.4 --key-momentum 0.99 --norm-groups 2"
TITLES = {"random": "random weights", "npid": "NPID", "moco": "MoCo v2"}
PAPER = {
    "*NPID (ResNet18) in the paper*": ("0.545", "0.540"),
    "*NPID (ResNet50) in the paper*": ("0.543", "0.528"),
    "*MoCo (ResNet50) in the paper*": ("0.543", "0.527"),
}
GPU = (
    "On a GPU the networks of the paper train by `captum-fam train contrastive npid --model npid_resnet18 --data "
    "imagenet/train --precision bfloat16 --num-workers 16 --out runs/npid18` (`npid_resnet50`), `captum-fam train "
    "contrastive moco --model moco_v2_resnet50 ...`, and for version 1 of MoCo `moco --model moco_v1_resnet50 "
    "--schedule steps --temperature 0.07 --augmentation v1 ...`; they are measured by `captum-fam evaluate contrastive "
    "--model npid_resnet18 --weights runs/npid18/best.safetensors --data imagenet/val --boxes LOC_val_solution.csv "
    "--bank-data imagenet/train`. These commands were not run for this page."
)


@dataclass(frozen=True)
class Source:
    """Images to train on, and images to explain.

    Attributes:
        title: title of the section.
        train: options of the images of the training.
        epochs: length of the two trainings, NPID and MoCo.
        queries: options of `evaluate contrastive`.
        mosaics: options of `evaluate mosaic`.
    """

    title: str
    train: str
    epochs: tuple[int, int]
    queries: str
    mosaics: str


def sources(shared: Path, quick: bool) -> dict[str, Source]:
    """The two sources by name."""
    cub = f"--data {shared}/data/cub50"
    n_train, n_test, n_mosaics = (960, 240, 10) if quick else (2000, 960, 100)
    return {
        "cub": Source(
            "CUB photographs: trained on the training split, queries of the test split",
            f"{cub} --stored-size 72",
            (2, 2) if quick else (120, 90),
            f"{cub} --split test --bank-split train",
            f"{cub} --mosaics {n_mosaics}",
        ),
        "scenes": Source(
            "Planted scenes: trained on base classes, queries of novel classes, each left out of the bank of all",
            f"--data scenes:{n_train}",
            (2, 2) if quick else (30, 30),
            f"--data scenes:{n_test} --split novel --bank-split novel",
            f"--data scenes:{n_test} --mosaics {n_mosaics}",
        ),
    }


def log(folder: Path) -> list[dict[str, str]]:
    """The lines of a training's log so far."""
    path = folder / "log.csv"
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def trained(name: str, recipe: str, source: Source, runs: Path) -> str:
    """Train a network where that is not done; gives the command."""
    out = runs / name
    words = f"train contrastive {recipe} {MODEL} {source.train} {TRAINING} --cache {runs}/images --out {out}"
    epochs = int(recipe.split("--epochs ")[1].split()[0])
    if len(log(out)) < epochs:
        call(f"{words} --quiet")
    return f"captum-fam {words}"


def measured(name: str, source: Source, runs: Path) -> tuple[list[str], list[Results]]:
    """Measure a network; gives the commands, and what the queries and the mosaics gave."""
    model = f"{MODEL} --weights {runs / name / 'best.safetensors'} --device cpu"
    protocols = {
        "contrastive": f"--k {NEIGHBORS} {source.queries} --measures localization,swap",
        "mosaic": source.mosaics,
    }
    commands, results = [], []
    for protocol, options in protocols.items():
        out = runs / f"{name}-{protocol}"
        commands.append(f"evaluate {protocol} {model} {options} --methods {METHODS} --out {out}")
        call(f"{commands[-1]} --quiet")
        results.append(read(out))
    return [f"captum-fam {words}" for words in commands], results


def section(source: Source, results: dict[str, list[Results]], logs: dict[str, list[dict[str, str]]]) -> list[str]:
    """Table III's form for all networks of a source, and the table of each network."""
    rows = {name: {"energy": energy, "iou": iou} for name, (energy, iou) in PAPER.items()}
    rows = {name: {column: f"*{value}*" for column, value in cells.items()} for name, cells in rows.items()}
    for name, (queries, mosaics) in results.items():
        accuracy = next(line for line in queries.model if line.startswith("accuracy")).removeprefix("accuracy ")
        best = max(logs[name], key=lambda line: float(line["val_knn"]))
        rows[TITLES[name]] = {
            **{column: queries.cells["fam"].get(column, "–") for column in ("energy", "iou")},
            "accuracy": accuracy,
            "held-out images": f"{float(best['val_knn']):.3f} (with the head {float(best['val_knn_head']):.3f})",
            "loss, first and last epoch": f"{float(logs[name][0]['loss']):.2f}, {float(logs[name][-1]['loss']):.2f}",
            "cell-auroc": mosaics.cells["fam"].get("cell-auroc", "–"),
        }
    lines = [f"## {source.title}", "", "Published FAM:", "", *markdown_table(rows, "network"), ""]
    for name, parts in results.items():
        cells: dict[str, dict[str, str]] = {}
        for part in parts:
            for method, values in part.cells.items():
                # The swap of the mosaics comes last, and the first one is meant.
                cells[method] = {**values, **cells.get(method, {})}
        told = {
            method: {measure: values[measure] for measure in MEASURES if measure in values}
            for method, values in cells.items()
        }
        model = f"Queries: {', '.join(parts[0].model)}. Mosaics: {', '.join(parts[1].model)}."
        lines += [f"### {TITLES[name]}", "", model, "", *markdown_table(told), ""]
    return lines


def main() -> None:
    """Train what is missing, measure, write the page."""
    parser = parser_for(
        "benchmarks.contrastive_tables",
        __doc__,
        names=("cub", "scenes"),
        runs="runs/contrastive",
        out="docs/results/paper-contrastive.md",
        quick="minutes instead of an hour; choose another --runs",
    )
    options = parser.parse_args()
    known = sources(options.shared, options.quick)
    commands: list[str] = []
    sections: list[str] = []
    for name in options.names or known:
        source = known[name]
        recipes = {
            "random": RANDOM,
            "npid": f"{NPID} --epochs {source.epochs[0]}",
            "moco": f"{MOCO} --epochs {source.epochs[1]}",
        }
        results: dict[str, list[Results]] = {}
        for way, recipe in recipes.items():
            commands.append(trained(f"{name}-{way}", recipe, source, options.runs))
            ran, results[way] = measured(f"{name}-{way}", source, options.runs)
            commands += ran
        sections += section(source, results, {way: log(options.runs / f"{name}-{way}") for way in results})
    write_page(
        options.out,
        "Table III: networks trained by contrast here",
        command(parser, options),
        sections,
        ran=commands,
        seed="seed 1 of the trainings, 0 of the mosaics",
        note="The k-NN accuracy is that of 20 neighbors; maps are of the correctly classified queries. "
        "Held-out images are every fifth training image of each class, which choose the epoch. Photographs of mosaics "
        "may be among the training images, whose labels the training does not see. Random weights have the batch "
        f"statistics of the training images.\n\n{GPU}",
    )


if __name__ == "__main__":
    main()
