"""Run by ``test_sample_metric.py`` as each of two processes; ``python two_processes.py RANK STORE`` prints results."""

from __future__ import annotations

import sys

import torch
import torch.distributed as dist
from torch import Tensor

from captum_fam.metrics import BoxIoU, EnergyProportion, GroupedAccuracy, MaxBoxAccV2, RecallAtK

SIZE = (19, 11)
# The second process has fewer batches, and a last one that is shorter.
BATCHES = {0: [slice(0, 8), slice(8, 16), slice(16, 19)], 1: [slice(19, 27), slice(27, 29)]}


def data() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(5)
    maps = torch.rand(29, 1, 5, 3, generator=generator)
    maps[3], maps[20, 0, 0, 0] = 0.3, torch.nan
    corners = torch.rand(29, 2, 2, generator=generator).sort(1).values * torch.tensor([SIZE[1], SIZE[0]])
    labels = torch.randint(0, 4, (29,), generator=generator)
    return {
        "maps": maps,
        "boxes": corners.flatten(1),
        "episodes": torch.arange(29) // 6,
        "labels": labels,
        "predicted": torch.randint(0, 4, (29,), generator=generator),
        "embeddings": torch.randn(29, 3, generator=generator),
    }


def evaluate(batches: list[slice], lonely: bool) -> list[object]:
    """The results of several metrics; ``lonely`` is whether this process feeds the last one."""
    energy, iou, max_box = EnergyProportion(), BoxIoU(), MaxBoxAccV2(thresholds=(0.1, 0.3, 0.6))
    accuracy, recall, one_sided = GroupedAccuracy(), RecallAtK(1), BoxIoU()
    everything = data()
    for batch in batches:
        d = {name: tensor[batch] for name, tensor in everything.items()}
        energy.update(d["maps"], d["boxes"], SIZE)
        iou.update(d["maps"], d["boxes"], SIZE, groups=d["episodes"])
        max_box.update(d["maps"], d["boxes"], SIZE)
        accuracy.update(d["predicted"], d["labels"], d["episodes"])
        recall.update(d["embeddings"], d["labels"])
        if lonely:
            one_sided.update(d["maps"], d["boxes"], SIZE, groups=d["episodes"])
    fed = (energy, iou, max_box, accuracy, recall, one_sided)
    # Sums are exact: results of the same text have the same digits.
    results: list[object] = [max_box.levels().best.tolist()]
    results += [(metric.result(), metric.compute().item()) for metric in fed]
    with energy.sync_context():
        results.append(len(energy.samples.values))
    results.append(len(energy.samples.values))
    return results


if __name__ == "__main__":
    rank, store = int(sys.argv[1]), sys.argv[2]
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    print(repr(evaluate(BATCHES[rank], lonely=rank == 0)))
    dist.destroy_process_group()
