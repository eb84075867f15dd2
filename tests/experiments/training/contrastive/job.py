"""Trains by NPID and by MoCo, alone or as one of the processes of torchrun: ``python job.py FOLDER``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from captum_fam._files import sha256_of
from captum_fam.embedding.ranks import joined
from captum_fam.experiments.training import ContrastiveRecipe, MoCoRecipe, NPIDRecipe, train_contrastive
from captum_fam.experiments.training.contrastive import training
from captum_fam.models import EmbeddingModel, EmbeddingNet
from captum_fam.pooling import GAP


class Images(Dataset[tuple[Tensor, int]]):
    """Images of different sizes with one color of four each, in noise."""

    def __init__(self, length: int, first: int = 0) -> None:
        self.labels = torch.arange(first, first + length) % 4
        generator = torch.Generator().manual_seed(first)
        colors = torch.tensor([[0.9, 0.2, 0.2], [0.2, 0.9, 0.2], [0.2, 0.2, 0.9], [0.8, 0.8, 0.1]])
        self.images = [
            0.7 * colors[label].view(3, 1, 1) + 0.3 * torch.rand(3, 16, 16, generator=generator)
            for label in self.labels
        ]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], int(self.labels[index])


def network() -> EmbeddingModel:
    """A convolution with batch normalization and no head, the same in every call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        features = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, bias=False), nn.BatchNorm2d(8), nn.ReLU())
    net = EmbeddingNet(features, GAP()).eval()
    return EmbeddingModel("net", net, "features", 12, mean=(0.5,) * 3, std=(0.25,) * 3, pooling=net.pooling)


def recipes(**changes: Any) -> dict[str, ContrastiveRecipe]:
    """A recipe of NPID and one of MoCo, for two epochs of five steps."""
    shared: dict[str, Any] = {"epochs": 2, "batch_size": 8, "embedding_size": 5, "norm_groups": 2, "k": 3, **changes}
    return {"npid": NPIDRecipe(**shared, negatives=20), "moco": MoCoRecipe(**shared, queue=12, key_momentum=0.9)}


def run(out: Path) -> None:
    """Train by NPID and by MoCo, and check that bank and queue are the same in all processes."""
    made: list[nn.Module] = []
    make_learner = training.make_learner

    def kept(*arguments: Any) -> Any:
        name, learner = make_learner(*arguments)
        made.append(learner)
        return name, learner

    with joined("cpu") as ranks, patch.object(training, "make_learner", kept):
        for name, recipe in recipes().items():
            train_contrastive(network(), Images(43), out / name, recipe, bank=Images(43), val=Images(9, 2), ranks=ranks)
        memories = [sha256_of(*learner.bank.buffers()) for learner in made[:1]]
        memories += [sha256_of(*learner.queue.buffers()) for learner in made[1:]]
        assert len(set(map(tuple, ranks.gather(memories)))) == 1


if __name__ == "__main__":
    torch.set_num_threads(1)
    run(Path(sys.argv[1]))
