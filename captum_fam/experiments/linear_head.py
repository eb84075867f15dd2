"""A linear head on frozen features, trained in seconds: the transformation module of the paper's section IV-D."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear, normalize

from captum_fam._files import write_all_or_nothing
from captum_fam.experiments.fitting import fit
from captum_fam.models.checkpoints import read_state_dict


def train_head(
    features: Tensor,
    labels: Tensor,
    width: int = 128,
    *,
    steps: int = 300,
    learning_rate: float = 3e-3,
    weight_decay: float = 1e-2,
    temperature: float = 0.1,
    seed: int = 0,
) -> nn.Linear:
    """Train ``Linear(N, width)`` so that the cosine tells the classes apart.

    A softmax over the cosines to one learned proxy per class (Zhai and Wu, BMVC 2019), by AdamW on all features at
    once.

    Args:
        features: pooled activations of the training classes, ``(n, N)``.
        labels: their classes, ``(n,)``, any integers.
        width: J. Default: 128.
        steps: of the optimizer. Default: 300.
        learning_rate: falls to zero along a cosine. Default: 3e-3.
        weight_decay: of the optimizer. Default: 1e-2.
        temperature: of the softmax. Default: 0.1.
        seed: of the initial weights. Default: 0.

    Returns:
        The head, in eval mode, with a bias as the paper's models have one.

    Raises:
        ValueError: for fewer than two classes.
    """
    classes, target = labels.unique(return_inverse=True)
    if len(classes) < 2:
        raise ValueError(f"labels must be of two classes at least, got {len(classes)}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = nn.Linear(features.shape[1], width)
        proxies = nn.Parameter(torch.randn(len(classes), width))
    optimizer = torch.optim.AdamW([*head.parameters(), proxies], learning_rate, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    features = features.detach().float().cpu()

    def loss_of(_: int) -> Tensor:
        cosines = linear(normalize(head(features), dim=1), normalize(proxies, dim=1))
        return cross_entropy(cosines / temperature, target.cpu())

    for _ in fit(range(steps), loss_of, optimizer, schedule=schedule):
        pass  # the steps are all there is to do
    return head.eval().requires_grad_(False)


def save_head(head: nn.Linear, path: str | Path) -> None:
    """Write the head's weight and bias, all of the file or nothing."""
    path = Path(path)
    with write_all_or_nothing(path.parent) as scratch:
        torch.save(head.state_dict(), scratch / path.name)


def load_head(path: str | Path) -> nn.Linear:
    """Read what :func:`save_head` or ``captum-fam train metric`` wrote, or any state dict of a ``torch.nn.Linear``.

    Raises:
        ValueError: if the file holds something else.
    """
    state = read_state_dict(path)
    weight = state.get("weight")
    if not isinstance(weight, Tensor) or weight.dim() != 2 or not state.keys() <= {"weight", "bias"}:
        raise ValueError(f"head {path}: expected the state dict of a torch.nn.Linear, weight (J, N) and bias")
    head = nn.Linear(weight.shape[1], weight.shape[0], bias="bias" in state)
    head.load_state_dict(state)
    return head.eval().requires_grad_(False)
