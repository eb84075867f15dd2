"""Training of a pooling with parameters on frozen activations."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from captum_fam.experiments.fitting import fit_adamw
from captum_fam.experiments.linear_head import check_two_classes, proxy_loss


def train_pooling(
    pooling: nn.Module,
    activations: Tensor,
    labels: Tensor,
    *,
    steps: int = 300,
    batch_size: int = 128,
    learning_rate: float = 3e-3,
    weight_decay: float = 1e-2,
    temperature: float = 0.1,
    seed: int = 0,
) -> None:
    """Train the parameters of a pooling so that the cosine similarity of the pooled features separates the classes.

    The recipe is that of :func:`~captum_fam.experiments.train_head`, with the pooling in the place of the head and a
    batch of the images in each step.

    Args:
        pooling: module from ``(B, N, *spatial)`` to ``(B, N)`` with parameters, such as
            :class:`~captum_fam.pooling.AttentionPooling`; it is trained in place, on its own device, and is in eval
            mode and without gradients afterwards.
        activations: output of the layer before the pooling for the training images, ``(n, N, *spatial)``.
        labels: class of each image, any integers ``(n,)``.
        steps: number of steps of the optimizer. Default: 300.
        batch_size: images per step. Default: 128.
        learning_rate: initial learning rate, which falls to zero along a cosine. Default: 3e-3.
        weight_decay: weight decay of the optimizer. Default: 1e-2.
        temperature: temperature of the softmax. Default: 0.1.
        seed: seed of the initial proxies and of the batches. Default: 0.

    Raises:
        ValueError: for a pooling without parameters, or fewer than two classes.

    Example:
        >>> from captum_fam.pooling import AttentionPooling
        >>> pooling = AttentionPooling(channels=6)
        >>> train_pooling(pooling, torch.rand(20, 6, 7, 7), torch.arange(20) % 4, steps=2)
        >>> bool(pooling.query.any())
        True
    """
    check_two_classes(labels)
    device = next((parameter.device for parameter in pooling.parameters()), None)
    if device is None:
        raise ValueError(f"pooling must have parameters to train, and {type(pooling).__name__} has none")
    classes, target = labels.to(device).unique(return_inverse=True)
    generator = torch.Generator().manual_seed(seed)
    proxies = nn.Parameter(torch.randn(len(classes), activations.shape[1], generator=generator).to(device))
    pooling.train().requires_grad_(True)
    batches = [torch.randperm(len(activations), generator=generator)[:batch_size] for _ in range(steps)]
    activations = activations.detach()

    def loss_of(rows: Tensor) -> Tensor:
        pooled = pooling(activations[rows.to(activations.device)].float().to(device))
        return proxy_loss(pooled, proxies, target[rows.to(device)], temperature)

    fit_adamw([*pooling.parameters(), proxies], batches, loss_of, learning_rate, weight_decay)
    pooling.eval().requires_grad_(False)
