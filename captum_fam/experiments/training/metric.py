"""Metric learning for retrieval: Multi-Similarity and Margin loss, with the schedules of Wang et al. (CVPR 2019).

A batch has a few classes with several images each. Losses and miners come from pytorch-metric-learning.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from captum_fam._files import lock_folder, sha256_of
from captum_fam._progress import progress_bar
from captum_fam.embedding.ranks import Ranks
from captum_fam.experiments.cut import trunk_of
from captum_fam.experiments.data.labels import labels_of
from captum_fam.experiments.fitting import fit
from captum_fam.experiments.training.images import generator_for
from captum_fam.experiments.training.metric_batches import AugmentedAtSteps, StepSampler, sampler_of_batches
from captum_fam.experiments.training.metric_recipe import MetricRecipe
from captum_fam.experiments.training.retrieval_features import embed_dataset, recalls_at
from captum_fam.experiments.training.training_run import (
    Precision,
    Trained,
    TrainingRun,
    autocast,
    distribute,
    gather_batch,
    random_numbers_restored,
)
from captum_fam.experiments.two_part_model import probe_images
from captum_fam.functional import unit
from captum_fam.models import EmbeddingModel, EmbeddingNet

Batches = Iterable[tuple[Tensor, Tensor]]

# Second entry of the seeds of the mining, which keeps its random numbers apart from all others.
_STEP = 2


@dataclass(frozen=True)
class _Options:
    """The folder, the settings and the devices of a training.

    Attributes:
        out: folder of the run.
        recipe: settings of the training.
        settings: everything else on which the result depends, for ``run.json``.
        ranks: the processes that share each step, and the device. Default: this process alone, on the CPU.
        precision: precision of the network. Default: ``"float32"``.
        progress: show a progress bar. Default: False.
        tensorboard: write curves for TensorBoard. Default: False.
    """

    out: str | Path
    recipe: MetricRecipe
    settings: dict[str, Any]
    ranks: Ranks = field(default_factory=Ranks)
    precision: Precision = "float32"
    progress: bool = False
    tensorboard: bool = False


def new_head(n_features: int, embedding_size: int, seed: int = 0) -> nn.Linear:
    """Make a linear head with Kaiming normal weights (by fan-out) and a bias of zero.

    Args:
        n_features: number of inputs N.
        embedding_size: number of outputs J.
        seed: seed of the weights. Default: 0.

    Returns:
        The head.

    Example:
        >>> new_head(1024, 512)
        Linear(in_features=1024, out_features=512, bias=True)
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = nn.Linear(n_features, embedding_size)
        nn.init.kaiming_normal_(head.weight, mode="fan_out")
    nn.init.zeros_(head.bias)
    return head


def train_metric(
    net: EmbeddingModel,
    train: Dataset[Any],
    val: Dataset[Any] | None,
    out: str | Path,
    recipe: MetricRecipe | None = None,
    *,
    embedding_size: int = 512,
    pooling: nn.Module | None = None,
    num_workers: int = 0,
    ranks: Ranks | None = None,
    precision: Precision = "float32",
    progress: bool = False,
    tensorboard: bool = False,
) -> Trained:
    """Train a network for retrieval, and keep the weights with the best Recall@1 on the validation classes.

    Images are cropped at random (16 to 100 % of the area) and mirrored. Batch normalization keeps its statistics. A run
    that was killed continues after its last measurement when it is started again, and has the same result as an
    undisturbed run. A step has the same result with any number of processes, because all pairs of the whole batch
    count.

    Args:
        net: result of :func:`~captum_fam.models.create_model`, trained in place. A network without a head gets a linear
            head, which has its own file of weights: ``best-head.safetensors``.
        train: items ``(image, label)`` or ``(image, label, boxes)``, with an attribute ``labels``; images of any size,
            float in [0, 1], not normalized.
        val: items of other classes in the same form, with images of one size; None keeps the weights of the last step.
        out: folder of checkpoints and log, see :class:`~captum_fam.experiments.training.TrainingRun`.
        recipe: settings of the training; None for the defaults. Default: None.
        embedding_size: number of outputs J of an added head. Default: 512.
        pooling: pooling before an added head; None for the pooling of the model. Default: None.
        num_workers: number of processes that read images. Default: 0.
        ranks: the processes that share each step, and the device. Default: this process alone, on the CPU.
        precision: precision of the network; the loss is computed in float32. Default: ``"float32"``.
        progress: show a progress bar. Default: False.
        tensorboard: write curves for TensorBoard. Default: False.

    Returns:
        The model from images to embeddings with the best weights, and the log: learning rate, loss, Recall@K of the
        validation classes.

    Raises:
        ImportError: without pytorch-metric-learning or safetensors, or without tensorboard if it is requested.
        ValueError: for a network without a head that cannot be cut before its pooling, a pooling for a network with a
            head, too few data for a batch, a batch that cannot be divided equally between the processes, or a folder
            with another run.
        RuntimeError: if the loss is NaN or infinite.

    Example:
        >>> net = create_model("multi_similarity_bn_inception")
        >>> load_weights(net.model.features, "bn_inception-52deb4733.pth", [IMAGENET_BN_INCEPTION])
        >>> train_metric(net, CUB200(root, "retrieval-train"), None, "runs/ms", ranks=Ranks(device="cuda"))
    """
    recipe, ranks = recipe or MetricRecipe(), ranks or Ranks()
    autocast(ranks.device, precision)  # refuses a precision before the folder of the run is made
    train_labels = labels_of(train)
    recipe.check_labels(train_labels, None if val is None else labels_of(val))
    model, weights = net.model, {"": net.model}
    if net.head is None:
        features, pooling = trunk_of(net, pooling)
        with torch.no_grad():
            device = next(net.model.parameters()).device
            width = pooling(features(probe_images(net.size, len(net.mean)).to(device))).shape[1]
        head = new_head(width, embedding_size, recipe.seed)
        model, weights = EmbeddingNet(features, pooling, head, unit_norm=True), {"": net.model, "-head": head}
    elif pooling is not None:
        raise ValueError(f"pooling: {net.name} has a head, which was trained for the pooling of the model; pass None")
    sampler = sampler_of_batches(train_labels, recipe)
    StepSampler(sampler, 0, ranks)  # refuses a batch that the processes cannot share
    crop = v2.Compose(
        [
            v2.RandomResizedCrop(net.size, scale=(0.16, 1.0), antialias=True),
            v2.RandomHorizontalFlip(),
            net.normalize,
        ]
    )
    augmented = AugmentedAtSteps(train, crop, recipe.seed)

    def batches(first: int) -> Batches:
        return DataLoader(augmented, batch_sampler=StepSampler(sampler, first, ranks), num_workers=num_workers)

    def embed() -> tuple[Tensor, Tensor]:
        assert val is not None
        return embed_dataset(model, net, val, ranks.device, num_workers)

    settings = {
        "model": net.name,
        "embedding_size": embedding_size,
        "pooling": str(pooling),
        "precision": precision,
        "train": sha256_of(train_labels),
    }
    return _fit(
        model,
        weights,
        batches,
        None if val is None else embed,
        _Options(out, recipe, settings, ranks, precision, progress, tensorboard),
    )


def train_metric_head(
    features: Tensor,
    labels: Tensor,
    val: tuple[Tensor, Tensor] | None,
    out: str | Path,
    recipe: MetricRecipe | None = None,
    *,
    embedding_size: int = 512,
    progress: bool = False,
    tensorboard: bool = False,
) -> Trained:
    """Train a linear head on pooled features of a frozen network, which takes seconds on a CPU.

    Args:
        features: result of :func:`pooled_features`, ``(n, N)``.
        labels: class of each row, ``(n,)``.
        val: features and labels of other classes, which choose the best step; None keeps the weights of the last step.
        out: folder of ``best-head.safetensors`` and log, see :class:`~captum_fam.experiments.training.TrainingRun`.
        recipe: settings of the training; None for the defaults with a learning rate of 1e-3, because a new head changes
            more than a trained network. Default: None.
        embedding_size: number of outputs J. Default: 512.
        progress: show a progress bar. Default: False.
        tensorboard: write curves for TensorBoard. Default: False.

    Returns:
        The head, a ``torch.nn.Linear``, and the log as in :func:`train_metric`.

    Raises:
        ImportError: without pytorch-metric-learning or safetensors, or without tensorboard if it is requested.
        ValueError: for too few features for a batch, or a folder with another run.
        RuntimeError: if the loss is NaN or infinite.
    """
    recipe = recipe or MetricRecipe(learning_rate=1e-3)
    recipe.check_labels(labels, None if val is None else val[1])
    head = new_head(features.shape[1], embedding_size, recipe.seed)
    sampler = sampler_of_batches(labels, recipe)

    def batches(first: int) -> Iterator[tuple[Tensor, Tensor]]:
        for step in range(first, recipe.steps):
            items = sampler.episode(step).support.flatten()
            yield features[items], labels[items]

    @torch.no_grad()
    def embed() -> tuple[Tensor, Tensor]:
        assert val is not None
        return unit(head(val[0])), val[1]

    settings = {"model": "head", "embedding_size": embedding_size, "train": sha256_of(features, labels)}
    options = _Options(out, recipe, settings, progress=progress, tensorboard=tensorboard)
    return _fit(head, {"-head": head}, batches, None if val is None else embed, options)


def _fit(
    model: nn.Module,
    weights: dict[str, nn.Module],
    batches: Callable[[int], Batches],
    embed: Callable[[], tuple[Tensor, Tensor]] | None,
    options: _Options,
) -> Trained:
    """Train a model with the pairs or triplets of its batches.

    Args:
        model: module from the images or features of a batch to embeddings.
        weights: modules to save, by the suffix of the names of their files.
        batches: function from the first step to the batches of this process from that step on.
        embed: function that returns embeddings and labels, of which the recall is measured; None keeps the weights of
            the last step.
        options: folder, settings and devices.
    """
    recipe, ranks = options.recipe, options.ranks
    compute_loss = recipe.make_loss()
    model.to(ranks.device)
    optimizer = torch.optim.Adam(model.parameters(), recipe.learning_rate, weight_decay=recipe.weight_decay)
    scaler = torch.amp.GradScaler(torch.device(ranks.device).type, enabled=options.precision == "float16")
    run = TrainingRun(
        options.out,
        {"recipe": "metric", **asdict(recipe), "way": recipe.classes, **options.settings, "val": embed is not None},
        None if embed is None else "val_recall@1",
        {"model": model, "optimizer": optimizer, "scaler": scaler},
        ranks,
        options.tensorboard,
    )
    stepper = distribute(model, ranks)
    first = run.epoch * recipe.period

    def loss_of(step_and_batch: tuple[int, tuple[Tensor, Tensor]]) -> Tensor:
        step, (inputs, labels) = step_and_batch
        # For the mining. Each step has its own seed, so that a resumed run draws the same numbers as any other run.
        torch.manual_seed(generator_for(recipe.seed, _STEP, step).initial_seed())
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate(step)
        with autocast(ranks.device, options.precision):
            embeddings = stepper(inputs.to(ranks.device))
        batch_embeddings, batch_labels = _gather(unit(embeddings.float()), labels.to(ranks.device), ranks)
        # Each process computes the gradient of its own embeddings only. The gradients are averaged over the processes,
        # but their sum is the gradient of the loss.
        return compute_loss(batch_embeddings, batch_labels) * ranks.size

    losses: list[Tensor] = []
    start = time.monotonic()
    bar = progress_bar(
        total=recipe.steps,
        initial=first,
        desc=recipe.loss,
        shown=options.progress and ranks.is_first,
    )
    _train_mode(model)
    with lock_folder(options.out, ranks.is_first), bar, random_numbers_restored(ranks.device):
        # A finished run must not start worker processes.
        remaining = enumerate(batches(first), first) if first < recipe.steps else ()
        for step, loss in enumerate(fit(remaining, loss_of, optimizer, scaler=scaler), first + 1):
            losses.append(loss / ranks.size)
            bar.update()
            if step % recipe.period:
                continue
            mean = float(torch.stack(losses).mean())
            if not mean < float("inf"):
                raise RuntimeError(f"the loss before step {step} is {mean}; lower the learning rate")
            row = {
                "epoch": run.epoch,
                "step": step,
                "learning_rate": recipe.rate(step - 1),
                "loss": mean,
                **({} if embed is None else {f"val_{name}": recall for name, recall in _recalls(model, embed).items()}),
                "seconds": time.monotonic() - start,
            }
            run.finish_epoch(row, {suffix: part.state_dict() for suffix, part in weights.items()})
            bar.set_postfix({key: f"{row[key]:.3f}" for key in ("loss", "val_recall@1") if key in row})
            losses, start = [], time.monotonic()
    run.finish(weights)
    return Trained(model.eval(), run.history, run.best)


def _recalls(model: nn.Module, embed: Callable[[], tuple[Tensor, Tensor]]) -> dict[str, float]:
    model.eval()
    recalls = recalls_at(*embed())
    _train_mode(model)
    return recalls


def _train_mode(model: nn.Module) -> None:
    """Set the training mode, except for batch normalization, which keeps the statistics of the pretraining."""
    model.train()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()


def _gather(embeddings: Tensor, labels: Tensor, ranks: Ranks) -> tuple[Tensor, Tensor]:
    """The batch of all processes, with gradients for the embeddings of this process only."""
    if ranks.size == 1:
        return embeddings, labels
    rows = list(gather_batch(embeddings, ranks).chunk(ranks.size))
    rows[ranks.rank] = embeddings
    return torch.cat(rows), gather_batch(labels, ranks)
