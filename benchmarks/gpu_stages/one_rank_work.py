"""What the process of stage ``ranks`` does: ``torchrun ... -m benchmarks.gpu_stages.one_rank_work CASE``."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from benchmarks.gpu_stages.report import Case
from benchmarks.gpu_stages.timing import measure
from captum_fam.cli.main import main as captum_fam
from captum_fam.embedding.ranks import joined

_METHODS = ("--methods", "fam,similarity-cam,mean-activation,center", "--measures", "localization")


def work(case: Case) -> None:
    """Exchange values, take a gradient that is averaged over the processes, and evaluate inside the process group.

    Args:
        case: what the stage is told; ``facts.jsonl`` in its folder gets a line for every step that succeeds.

    Raises:
        SystemExit: if a command of captum-fam fails.
    """
    backend = "nccl" if case.device == "cuda" else "gloo"
    distributed.init_process_group(backend)
    facts = Path(case.folder) / "facts.jsonl"
    facts.parent.mkdir(parents=True, exist_ok=True)
    facts.unlink(missing_ok=True)

    def tell(step: str, **values: Any) -> None:
        with facts.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, "backend": backend, **values}) + "\n")

    with joined(case.device) as ranks:
        _exchange(tell, ranks.device, 2**12 if case.is_small else 2**26)
        _average(tell, ranks.device)
        for number, command in enumerate(evaluations(case)):
            start = time.monotonic()
            code = captum_fam(
                [*command, *_METHODS, "--device", case.device, "--quiet", "--out", f"{case.folder}/{number}"]
            )
            if code > 1:  # 1: an image was left out, and named
                raise SystemExit(code)
            # Without the folders, whose names mean nothing elsewhere.
            shown = [Path(word).name if "/" in word else word for word in command]
            tell("evaluate", command=f"captum-fam {' '.join(shown)}", seconds=round(time.monotonic() - start, 1))
    distributed.destroy_process_group()


def evaluations(case: Case) -> list[list[str]]:
    """The commands of captum-fam: the network of stage ``moco`` on the packed photographs, or the demo's on scenes.

    Args:
        case: what the stage is told.
    """
    weights = Path(case.folder).parent / "moco" / "run" / "best.safetensors"
    model = ["--model", "npid_resnet18", "--weights", str(weights) if weights.exists() else "none", "--size", "112"]
    commands = []
    if case.data_pack and not case.is_small:
        cub, imagenet = (Path(case.data_pack) / name for name in ("cub50", "imagenet1300"))
        if cub.is_dir():
            commands.append(["evaluate", "contrastive", *model, "--data", str(cub), "--k", "20", "--num-workers", "8"])
        if imagenet.is_dir():
            boxes = ["--boxes", str(imagenet / "LOC_val_solution.csv")]
            commands.append(["evaluate", "retrieval", *model, "--data", str(imagenet / "images"), *boxes])
    scenes = f"scenes:{80 if case.is_small else 1000}"
    return commands or [["evaluate", "retrieval", "--model", "demo", "--data", scenes, "--split", "novel"]]


def _exchange(tell: Callable[..., None], device: str, n_numbers: int) -> None:
    # One process alone sends nothing by itself, so that the exchange is asked of torch.
    values: list[Any] = [None]
    distributed.all_gather_object(values, {"text": "value"})
    tell("objects", same=values == [{"text": "value"}])
    block = torch.ones(n_numbers, device=device)
    timing = measure(lambda: distributed.all_reduce(block), device, 5, 1.0)
    tell("all_reduce", mib=n_numbers * 4 / 2**20, ms=timing.ms, same=bool((block == 1).all()))


def _average(tell: Callable[..., None], device: str) -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).to(device)
    images = torch.rand(4, 3, 16, 16, device=device)
    parameters = list(plain.parameters())
    alone = torch.autograd.grad(plain(images).square().sum(), parameters)
    together = DistributedDataParallel(plain, device_ids=[device] if device.startswith("cuda") else None)
    together(images).square().sum().backward()
    averaged = [parameter.grad for parameter in parameters]
    differences = [float((one - other).abs().max()) for one, other in zip(alone, averaged, strict=True)]
    tell("gradients", largest_difference=max(differences))


if __name__ == "__main__":
    work(Case(**json.loads(sys.argv[1])))
