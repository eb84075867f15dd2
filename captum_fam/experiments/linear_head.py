"""Training on frozen features: a linear head, or a pooling with parameters.

A linear head is the transformation module of section IV-D of the FAM paper (arXiv 2307.05017).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear, normalize

from captum_fam._files import write_all_or_nothing
from captum_fam._text import printable
from captum_fam.experiments.fitting import fit
from captum_fam.models import WeightsError, load_weights, read_state_dict

_TEMPERATURE = 0.1


def train_head(
    features: Tensor,
    labels: Tensor,
    width: int = 128,
    *,
    steps: int = 300,
    learning_rate: float = 3e-3,
    weight_decay: float = 1e-2,
    temperature: float = _TEMPERATURE,
    seed: int = 0,
) -> nn.Linear:
    """Train ``Linear(N, width)`` so that the cosine similarity of the outputs separates the classes.

    The loss is the cross-entropy of a softmax over the cosines to one learned proxy per class (Zhai and Wu, BMVC 2019).
    AdamW minimizes the loss on all features at once, which takes seconds.

    Args:
        features: pooled activations of the training images, ``(n, N)``.
        labels: class of each image, any integers ``(n,)``.
        width: number of outputs J. Default: 128.
        steps: number of steps of the optimizer. Default: 300.
        learning_rate: initial learning rate, which falls to zero along a cosine. Default: 3e-3.
        weight_decay: weight decay of the optimizer. Default: 1e-2.
        temperature: temperature of the softmax. Default: 0.1.
        seed: seed of the initial weights. Default: 0.

    Returns:
        The head in eval mode, with a bias as in the models of the paper.

    Raises:
        ValueError: for fewer than two classes.

    Example:
        >>> train_head(torch.rand(20, 64), torch.arange(20) % 4, width=8, steps=2)
        Linear(in_features=64, out_features=8, bias=True)
    """
    check_two_classes(labels)
    classes, target = labels.unique(return_inverse=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = nn.Linear(features.shape[1], width)
        proxies = nn.Parameter(torch.randn(len(classes), width))
    features = features.detach().float().cpu()
    everything = torch.arange(len(features))
    _fit_to_proxies(
        head, proxies, features, target.cpu(), [everything] * steps, learning_rate, weight_decay, temperature
    )
    return head.eval().requires_grad_(False)


def train_pooling(
    pooling: nn.Module,
    activations: Tensor,
    labels: Tensor,
    *,
    steps: int = 300,
    batch_size: int = 128,
    learning_rate: float = 3e-3,
    weight_decay: float = 1e-2,
    temperature: float = _TEMPERATURE,
    seed: int = 0,
) -> None:
    """Train the parameters of a pooling so that the cosine similarity of the pooled features separates the classes.

    The recipe is that of :func:`train_head`, with the pooling in the place of the head and a batch of the images in
    each step.

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
    batches = [torch.randperm(len(activations), generator=generator)[:batch_size] for _ in range(steps)]
    _fit_to_proxies(pooling, proxies, activations.detach(), target, batches, learning_rate, weight_decay, temperature)
    pooling.eval().requires_grad_(False)


def _fit_to_proxies(
    module: nn.Module,
    proxies: nn.Parameter,
    inputs: Tensor,
    target: Tensor,
    batches: Sequence[Tensor],
    learning_rate: float,
    weight_decay: float,
    temperature: float,
) -> None:
    """Train a module and the proxies of the classes on rows of its inputs, one batch of rows per step."""
    optimizer = torch.optim.AdamW([*module.parameters(), proxies], learning_rate, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(batches))

    def loss_of(rows: Tensor) -> Tensor:
        outputs = module(inputs[rows.to(inputs.device)].float().to(proxies.device))
        cosines = linear(normalize(outputs, dim=1), normalize(proxies, dim=1))
        return cross_entropy(cosines / temperature, target[rows.to(target.device)])

    for _ in fit(batches, loss_of, optimizer, schedule=schedule):
        pass  # The loop takes the steps.


def check_two_classes(labels: Tensor) -> None:
    """Refuse the labels of a single class, which a head cannot separate from others.

    Args:
        labels: class of each image, ``(n,)``.

    Raises:
        ValueError: for fewer than two classes.

    Example:
        >>> check_two_classes(torch.tensor([0, 1, 1]))
    """
    n_classes = len(labels.unique())
    if n_classes < 2:
        raise ValueError(f"labels must be of at least two classes, got {n_classes}")


def save_head(head: nn.Linear, path: str | Path) -> None:
    """Write the weight and the bias of a head; the file is written completely or not at all.

    Args:
        head: the head.
        path: path of the file.

    Example:
        >>> save_head(nn.Linear(64, 8), "head.pt")
        >>> load_head("head.pt")
        Linear(in_features=64, out_features=8, bias=True)
    """
    path = Path(path)
    with write_all_or_nothing(path.parent) as scratch:
        torch.save(head.state_dict(), scratch / path.name)


def load_head(path: str | Path) -> nn.Linear:
    """Read a head: a file of :func:`save_head` or ``captum-fam train metric``, or any state dict of ``nn.Linear``.

    Args:
        path: path of the file.

    Returns:
        The head in eval mode, without gradients.

    Raises:
        WeightsError: (a ``ValueError``) if the file cannot be read, or holds NaN, inf or other than floating-point
            numbers.
        ValueError: if the file holds something else.
        ImportError: for a file of safetensors without the library.

    Example:
        See :func:`save_head`.
    """
    state = read_state_dict(path)
    weight = state.get("weight")
    if not isinstance(weight, Tensor) or weight.dim() != 2 or not state.keys() <= {"weight", "bias"}:
        raise ValueError(
            f"head {printable(path)}: expected the state dict of a torch.nn.Linear, weight (J, N) and bias"
        )
    head = nn.Linear(weight.shape[1], weight.shape[0], bias="bias" in state)
    try:
        load_weights(head, state)
    except WeightsError as error:
        raise WeightsError(f"head {printable(path)}: {error}") from error
    return head.eval().requires_grad_(False)
