"""Cost of one `attribute` call against the bare forward pass of the same batch.

    python -m benchmarks.attribute [--quick] [--threads 1] [--out docs/benchmarks/attribute.md]

ResNet-18 at 224 x 224 without its classifier, the last stage as the layer, embedded supports. Every row is a
process of its own: its time, in pairs with bare passes, then the memory of its tensors.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
from collections.abc import Callable
from itertools import product
from pathlib import Path

import torch
import torchvision
from captum.attr import LayerGradCam
from torch import Tensor, nn
from torch.nn.functional import normalize

from benchmarks.measure import Cost, in_own_process, machine, paired_ratio, peak_tensor_mib, print_cost
from captum_fam import LayerFAM, LayerSimilarityCAM, SimilarityToSupport, SupportSet

MODULE = "benchmarks.attribute"
BATCHES, SUPPORTS, CLASSES = (1, 16, 64), (1, 5, 200), (1, 5, 20)
PEERS = {"grad-cam": "pytorch_grad_cam", "torchcam": "torchcam"}


def build(method: str, batch: int, supports: int, classes: int) -> tuple[Callable[[], object], Callable[[], object]]:
    """The call to measure and the bare pass beside it."""
    torch.manual_seed(0)
    model = torchvision.models.resnet18().eval()
    model.fc = nn.Identity()
    x = torch.rand(batch, 3, 224, 224)
    embeddings = torch.rand(classes * supports, 512)
    labels = torch.arange(classes).repeat_interleave(supports)
    support = SupportSet(embeddings, labels)

    def bare() -> Tensor:
        with torch.no_grad():
            return model(x)

    def mean_cosine(embedding: Tensor) -> Tensor:
        return (normalize(embedding, dim=-1) @ normalize(embeddings[:supports], dim=-1).T).mean(-1)

    if method == "bare forward":
        return bare, bare
    if method == "LayerFAM":
        fam = LayerFAM(model, model.layer4)
        return lambda: fam.attribute(x, support=support, target=0), bare
    if method == "LayerSimilarityCAM":
        cam = LayerSimilarityCAM(model, model.layer4)
        return lambda: cam.attribute(x, support=support, target=0), bare
    if method == "captum LayerGradCam":
        grad_cam = LayerGradCam(SimilarityToSupport(model, support), model.layer4)
        return lambda: grad_cam.attribute(x, target=0), bare
    if method == "grad-cam":
        from pytorch_grad_cam import GradCAM

        peer = GradCAM(model=model, target_layers=[model.layer4])
        return lambda: peer(input_tensor=x, targets=[mean_cosine] * batch), bare
    if method == "torchcam":
        from torchcam.methods import GradCAM as TorchCam

        extractor = TorchCam(model, "layer4")

        def call() -> object:
            return extractor(scores=model(x), targets=[mean_cosine] * batch)

        return call, bare
    raise ValueError(f"unknown method {method!r}")


def measure(method: str, batch: int, supports: int, classes: int, rounds: int, threads: int) -> Cost:
    """One row."""
    torch.set_num_threads(threads)
    call, bare = build(method, batch, supports, classes)
    # Short passes are noisier and cheaper: more of them.
    return Cost(*paired_ratio(call, bare, max(rounds, 128 // batch)), peak_mib=peak_tensor_mib(call))


def cases(quick: bool) -> list[tuple[str, int, int, int]]:
    """Rows: our methods over the whole grid, the others where the number of supports is all that could matter."""
    batches, supports, classes = (BATCHES, SUPPORTS, CLASSES) if not quick else ((1,), (1, 5), (1, 5))
    rows = [("bare forward", batch, 1, 1) for batch in batches]
    rows += [("LayerFAM", *one) for one in product(batches, supports, classes)]
    others = ["LayerSimilarityCAM", "captum LayerGradCam"]
    others += [name for name, package in PEERS.items() if importlib.util.find_spec(package)]
    return rows + [(name, batch, 5, 1) for name in others for batch in batches]


def main() -> None:
    """Measure all rows and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="batch 1 and few supports only")
    parser.add_argument("--rounds", type=int, default=7, help="pairs of passes at least; default: %(default)s")
    parser.add_argument("--threads", type=int, default=1, help="of torch; default: %(default)s")
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks/attribute.md"))
    parser.add_argument("--case", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        print_cost(measure(**options.case))
        return
    torch.set_num_threads(options.threads)
    lines = [
        "# Cost of `attribute`",
        "",
        f"Written by `python -m {MODULE}{' --quick' if options.quick else ''} --threads {options.threads} --rounds "
        f"{options.rounds}` on {machine()}; seed 0.",
        "ResNet-18 at 224 x 224, layer4, embedded supports. Time: CPU time over that of a bare `no_grad` forward pass "
        f"of the same batch, median of {options.rounds} or more pairs [quartiles]. Memory: the most that tensors "
        "held at once during the call, without weights, images and supports, and its ratio to the bare pass's.",
        "",
        "| method | batch | supports per class | classes | time / forward | peak MiB | peak / forward |",
        "|---|---|---|---|---|---|---|",
    ]
    bare_peak: dict[int, float] = {}
    for method, batch, supports, classes in cases(options.quick):
        case = {"method": method, "batch": batch, "supports": supports, "classes": classes}
        cost = in_own_process(MODULE, **case, rounds=options.rounds, threads=options.threads)
        peak = bare_peak.setdefault(batch, cost.peak_mib)
        lines.append(
            f"| {method} | {batch} | {supports} | {classes} | {cost.ratio:.2f} [{cost.lower:.2f}, "
            f"{cost.upper:.2f}] | {cost.peak_mib:.1f} | {cost.peak_mib / peak:.2f} |"
        )
        print(lines[-1], flush=True)
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text("\n".join(lines) + "\n")
    print(f"written to {options.out}")


if __name__ == "__main__":
    main()
