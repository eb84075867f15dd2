"""Run by ``test_log_explanations.py`` as each of two processes: ``python two_ranks.py RANK FOLDER``."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import distributed, nn

from captum_fam.callbacks import log_similarity_explanations
from tests.callbacks.trained_nets import SmallNet, labeled, small_panel


def train(rank: int, looks: Path | None) -> dict[str, torch.Tensor]:
    """Two epochs of a model in ``DistributedDataParallel``, with or without looks."""
    torch.manual_seed(rank)
    model = nn.parallel.DistributedDataParallel(SmallNet())
    optimizer = torch.optim.SGD([one for one in model.parameters() if one.requires_grad], 0.1)
    images, labels = labeled(16, seed=20 + rank)
    panel = small_panel(shown=1)
    for epoch in (1, 2):
        for start in (0, 8):
            embeddings = model(images[start : start + 8])
            nn.functional.cross_entropy(embeddings[:, :3], labels[start : start + 8]).backward()
            optimizer.step()
            optimizer.zero_grad()
        if looks is not None:
            reading = log_similarity_explanations(model, panel, looks, epoch)
            assert (reading is None) == (rank > 0)
    return model.state_dict()


def main() -> None:
    """Train once with looks and once without."""
    rank, folder = int(sys.argv[1]), Path(sys.argv[2])
    distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    for kind, looks in (("with", folder / f"looks-{rank}"), ("without", None)):
        torch.save(train(rank, looks), folder / f"{kind}-{rank}.pt")
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
