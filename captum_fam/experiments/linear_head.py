"""A linear head on frozen features: the transformation module of section IV-D of the FAM paper (arXiv 2307.05017)."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear, normalize

from captum_fam._files import write_all_or_nothing
from captum_fam._text import printable
from captum_fam.experiments.fitting import fit_adamw
from captum_fam.models import WeightsError, load_weights, read_state_dict


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
    features, target = features.detach().float().cpu(), target.cpu()

    def loss_of(_: int) -> Tensor:
        return proxy_loss(head(features), proxies, target, temperature)

    fit_adamw([*head.parameters(), proxies], range(steps), loss_of, learning_rate, weight_decay)
    return head.eval().requires_grad_(False)


def proxy_loss(outputs: Tensor, proxies: Tensor, target: Tensor, temperature: float) -> Tensor:
    """The cross-entropy of a softmax over the cosine similarities to one proxy of each class.

    Args:
        outputs: ``(B, J)``.
        proxies: ``(C, J)``.
        target: class index of each output, ``(B,)``.
        temperature: temperature of the softmax.

    Returns:
        The mean over the outputs, a scalar.

    Example:
        >>> outputs, target = torch.tensor([[3.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 1])
        >>> proxy_loss(outputs, torch.eye(2), target, temperature=1.0)  # log(1 + exp(-1))
        tensor(0.3133)
    """
    return cross_entropy(linear(normalize(outputs, dim=1), normalize(proxies, dim=1)) / temperature, target)


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
