"""Cost of the exact map at early and late layers of a CNN, a ViT and a ConvNeXt, and of Shapley values.

    python -m benchmarks.attribute_layers [--threads 1] [--batch 4] [--out docs/benchmarks/attribute-layers.md]

Models of timm with random weights at 224 x 224, five embedded supports. Every row is a process of its own: its time, in
pairs with bare passes, then the memory of its tensors. The last lines say what `from captum_fam import LayerFAM` costs.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median

import timm
import torch
from captum.attr import LayerGradCam, LayerGradientXActivation
from torch import Tensor

from benchmarks.measure import Cost, in_own_process, machine, paired_ratio, peak_tensor_mib, print_cost
from captum_fam import LayerFAM, LayerSimilarityCAM, LayerSimilarityShapley, SimilarityToSupport, SupportSet, TokenGrid

MODULE = "benchmarks.attribute_layers"
# The input of the first block or the first stage, and the last layer before the pooling or the last attention.
LAYERS = {
    "resnet18": ("layer1", "layer4"),
    "convnext_tiny": ("stem", "norm_pre"),
    "vit_small_patch16_224": ("norm_pre", "blocks.10"),
}
METHODS = ("LayerSimilarityCAM", "LayerFAM", "captum LayerGradientXActivation", "captum LayerGradCam")
SHAPLEY = ("LayerSimilarityShapley", "resnet18", "layer4")


def build(method: str, name: str, layer: str, batch: int) -> tuple[Callable[[], object], Callable[[], object]]:
    """The call to measure and the bare pass beside it."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=0).eval()
    x = torch.rand(batch, 3, 224, 224)

    def bare() -> Tensor:
        with torch.no_grad():
            return model(x)

    support = SupportSet(torch.rand(5, bare().shape[1]))
    grid = {"token_grid": TokenGrid()} if name.startswith("vit") else {}
    module = model.get_submodule(layer)
    if method == "bare forward":
        return bare, bare
    if method in ("LayerSimilarityCAM", "LayerFAM", "LayerSimilarityShapley"):
        ours = {"LayerSimilarityCAM": LayerSimilarityCAM, "LayerFAM": LayerFAM}.get(method, LayerSimilarityShapley)
        made = ours(model, module, **grid)
        made.has_warned = True  # a layer before the class token explains what it explains
        return lambda: made.attribute(x, support=support), bare
    peer = {"captum LayerGradCam": LayerGradCam, "captum LayerGradientXActivation": LayerGradientXActivation}[method]
    captum = peer(SimilarityToSupport(model, support), module)
    return lambda: captum.attribute(x, target=0), bare


def measure(method: str, name: str, layer: str, batch: int, rounds: int, threads: int) -> Cost:
    """One row."""
    torch.set_num_threads(threads)
    call, bare = build(method, name, layer, batch)
    return Cost(*paired_ratio(call, bare, rounds), peak_mib=peak_tensor_mib(call))


def seconds_to_import(statement: str) -> float:
    """CPU seconds of a fresh interpreter that runs the statement, median of five."""
    code = f"import time; {statement}; print(time.process_time())"
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in range(5)]
    return median(float(run.stdout.splitlines()[-1]) for run in runs)


def main() -> None:
    """Measure all rows and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="pairs of passes; default: %(default)s")
    parser.add_argument("--batch", type=int, default=4, help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=1, help="of torch; default: %(default)s")
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks/attribute-layers.md"))
    parser.add_argument("--case", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        print_cost(measure(**options.case))
        return
    torch.set_num_threads(options.threads)
    lines = [
        "# Cost of maps at early and late layers",
        "",
        f"Written by `python -m {MODULE} --threads {options.threads} --batch {options.batch} --rounds "
        f"{options.rounds}` on {machine()}; seed 0.",
        f"Models of timm with random weights at 224 x 224, batch {options.batch}, five embedded supports. Time: CPU "
        f"time over that of a bare `no_grad` forward pass, median of {options.rounds} pairs [quartiles]. Memory: the "
        "most that tensors held at once during the call, without weights, images and supports, and its ratio to the "
        "bare pass's. The bars: the exact map of a ViT-S at its first block at most 2.6 times the bare pass, and at "
        "most the memory of one LayerGradCam there.",
        "",
        "| model | layer | method | time / forward | peak MiB | peak / forward |",
        "|---|---|---|---|---|---|",
    ]
    for name, layers in LAYERS.items():
        rows = [("bare forward", layers[-1]), *((method, layer) for layer in layers for method in METHODS)]
        if SHAPLEY[1] == name:
            rows.append((SHAPLEY[0], SHAPLEY[2]))
        bare_peak = 0.0
        for method, layer in rows:
            case = {"method": method, "name": name, "layer": layer, "batch": options.batch}
            cost = in_own_process(MODULE, **case, rounds=options.rounds, threads=options.threads)
            bare_peak = bare_peak or cost.peak_mib
            shown = "–" if method == "bare forward" else f"`{layer}`"
            lines.append(
                f"| {name} | {shown} | {method} | {cost.ratio:.2f} [{cost.lower:.2f}, {cost.upper:.2f}] | "
                f"{cost.peak_mib:.1f} | {cost.peak_mib / bare_peak:.2f} |"
            )
            print(lines[-1], flush=True)
    ours, captums = seconds_to_import("from captum_fam import LayerFAM"), seconds_to_import("import captum.attr")
    lines += [
        "",
        f"`from captum_fam import LayerFAM`: {ours:.2f} s of CPU time, `import captum.attr`: {captums:.2f} s.",
    ]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text("\n".join(lines) + "\n")
    print(f"written to {options.out}")


if __name__ == "__main__":
    main()
