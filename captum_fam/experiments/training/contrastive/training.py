"""Training without labels: every image is told from all others."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from captum_fam._files import lock_folder, sha256_of
from captum_fam._progress import progress_bar
from captum_fam.embedding.forward import check_embedding
from captum_fam.embedding.ranks import Ranks
from captum_fam.experiments.data.labels import labels_of
from captum_fam.experiments.fitting import fit
from captum_fam.experiments.training.contrastive.batches import EpochBatches
from captum_fam.experiments.training.contrastive.data import evenly_spaced
from captum_fam.experiments.training.contrastive.grouped_encoder import GroupedEncoder
from captum_fam.experiments.training.contrastive.instance_learner import InstanceLearner
from captum_fam.experiments.training.contrastive.moco_learner import MoCoLearner
from captum_fam.experiments.training.contrastive.neighbor_accuracy import knn_accuracies
from captum_fam.experiments.training.contrastive.npid_learner import NPIDLearner
from captum_fam.experiments.training.contrastive.recipe import ContrastiveRecipe, MoCoRecipe, NPIDRecipe
from captum_fam.experiments.training.contrastive.views import RandomViews
from captum_fam.experiments.training.images import generator_for
from captum_fam.experiments.training.training_run import (
    Precision,
    Trained,
    TrainingRun,
    autocast,
    distribute,
    random_numbers_restored,
)
from captum_fam.experiments.two_part_model import probe_images
from captum_fam.models import EmbeddingModel

# Second entry of the seeds, which keeps the streams of random numbers apart.
_EPOCH = 15


def train_contrastive(
    net: EmbeddingModel,
    train: Dataset[Any],
    out: str | Path,
    recipe: ContrastiveRecipe,
    *,
    bank: Dataset[Any] | None = None,
    val: Dataset[Any] | None = None,
    num_workers: int = 0,
    ranks: Ranks | None = None,
    precision: Precision = "float32",
    progress: bool = False,
    tensorboard: bool = False,
) -> Trained:
    """Train a network by instance discrimination or momentum contrast, and keep the epoch with the best k-NN accuracy.

    Labels are used for the k-NN accuracy only. A run that was killed continues after its last complete epoch when it is
    started again, and has the same result as an undisturbed run. A step has the same result with any number of
    processes, also with batch normalization if ``recipe.norm_groups`` is a multiple of their number; but the running
    statistics of batch normalization are those of the first process.

    Args:
        net: result of :func:`~captum_fam.models.create_model`, trained in place. A network without a head gets the head
            of the recipe, with a file of its own: ``best-head.safetensors``.
        train: items ``(image, label)`` or ``(image, label, boxes)``, with an attribute ``labels``; images of any size,
            float in [0, 1], not normalized.
        out: folder of checkpoints and log, see :class:`~captum_fam.experiments.training.TrainingRun`.
        recipe: settings of the training: :class:`NPIDRecipe` or :class:`MoCoRecipe`.
        bank: images that vote in the k-NN accuracy, such as the training images, all of one size. Default: None.
        val: other images of the same classes, whose class is asked. Default: None, the last epoch is kept.
        num_workers: number of processes that read images. Default: 0.
        ranks: the processes that share each step, and the device. Default: this process alone, on the CPU.
        precision: precision of the network; similarities are computed in float32. Default: ``"float32"``.
        progress: show a progress bar. Default: False.
        tensorboard: write curves for TensorBoard. Default: False.

    Returns:
        ``net.model`` with the best weights, and the log: learning rate, loss, the share of the images that are told
        from all others, the k-NN accuracy of the network, and that behind an added head.

    Raises:
        TypeError: for another recipe.
        ValueError: for too few images, a batch that cannot be shared equally, one of ``bank`` and ``val`` without the
            other, or a folder with another run.
        RuntimeError: if the loss is NaN or infinite.
        ImportError: without safetensors, or without tensorboard if it is requested.

    Example:
        >>> net = create_model("npid_resnet18")
        >>> train, bank = CUB200(root, "train"), CUB200(root, "train", net.geometry)
        >>> val = CUB200(root, "test", net.geometry)
        >>> train_contrastive(net, train, "runs/npid", NPIDRecipe(batch_size=128), bank=bank, val=val)
        >>> trained_net = create_model("npid_resnet18", "runs/npid/best.safetensors")
    """
    ranks = ranks or Ranks()
    autocast(ranks.device, precision)  # refuses a precision before the folder of the run is made
    if (bank is None) != (val is None):
        raise ValueError("bank and val: the k-NN accuracy needs both, pass both or none")
    labels = labels_of(train)
    recipe.check(len(labels), ranks.size)
    if bank is not None:
        recipe.check_neighbors(len(labels_of(bank)))
    head, embedding_size = _head(net, recipe)
    groups = max(1, recipe.norm_groups // ranks.size)
    encoder = GroupedEncoder(net.model, head, groups, precision)
    name, learner = make_learner(encoder, recipe, ranks, len(labels), embedding_size)
    learner.to(ranks.device).to(memory_format=torch.channels_last)
    trained_parameters = [parameter for parameter in encoder.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(
        trained_parameters, recipe.learning_rate, recipe.momentum, weight_decay=recipe.weight_decay
    )
    scaler = torch.amp.GradScaler(torch.device(ranks.device).type, enabled=precision == "float16")
    settings = {
        "recipe": name,
        "model": net.name,
        **asdict(recipe),
        "size": net.size,
        "train": sha256_of(labels),
        "val": None if val is None or bank is None else sha256_of(labels_of(bank), labels_of(val)),
        "precision": precision,
    }
    parts = {"learner": learner, "optimizer": optimizer, "scaler": scaler}
    run = TrainingRun(out, settings, None if val is None else "val_knn", parts, ranks, tensorboard)
    weights = {"": net.model} if isinstance(head, nn.Identity) else {"": net.model, "-head": head}
    views = RandomViews(train, net.size, learner.n_views, recipe.smallest_crop, recipe.augmentation, recipe.seed)
    stepper = distribute(encoder, ranks)
    sums = torch.zeros(2, device=ranks.device)  # of the loss and the share of images that are told from all others

    def loss_of(step_and_batch: tuple[int, tuple[Tensor, Tensor]]) -> Tensor:
        step, (batch, items) = step_and_batch
        normalized = net.normalize(batch.to(ranks.device)).transpose(0, 1)
        loss, share = learner.loss(stepper, normalized, items.to(ranks.device), step)
        sums.add_(torch.stack([loss.detach(), share]))
        return loss

    n_steps = len(labels) // recipe.batch_size
    bar = progress_bar(
        total=recipe.epochs * n_steps,
        initial=run.epoch * n_steps,
        desc=net.name,
        shown=progress and ranks.is_first,
    )
    with lock_folder(out, ranks.is_first), bar, random_numbers_restored(ranks.device):
        for epoch in range(run.epoch, recipe.epochs):
            start = time.monotonic()
            # For dropout. Each epoch has its own seed, so that a resumed run draws the same numbers as any other run.
            torch.manual_seed(generator_for(recipe.seed, _EPOCH, epoch, ranks.rank).initial_seed())
            for group in optimizer.param_groups:
                group["lr"] = recipe.rate(epoch)
            learner.train()
            sums.zero_()
            batches = DataLoader(
                views,
                batch_sampler=EpochBatches(len(labels), recipe.batch_size, epoch, recipe.seed, ranks),
                num_workers=num_workers,
                pin_memory=torch.device(ranks.device).type == "cuda",
            )
            for _ in fit(enumerate(batches, epoch * n_steps), loss_of, optimizer, scaler=scaler):
                learner.finish_step()
                bar.update()
            mean = sum(ranks.gather((sums / n_steps).cpu()), torch.zeros(2)) / ranks.size
            if not mean.isfinite().all():
                raise RuntimeError(f"the loss of epoch {epoch} is {mean[0]}; lower the learning rate or use float32")
            try:
                accuracies = _knn(learner, net, bank, val, recipe, ranks, num_workers)
            except ValueError as error:  # the last step, which comes behind the last loss, can spoil the weights
                raise RuntimeError(
                    f"k-NN accuracy of epoch {epoch}: {error}; if the training diverges, lower the learning rate or "
                    "use float32"
                ) from error
            row = {
                "epoch": epoch,
                "learning_rate": recipe.rate(epoch),
                "loss": float(mean[0]),
                "instance_accuracy": float(mean[1]),
                **accuracies,
                "seconds": time.monotonic() - start,
            }
            run.finish_epoch(row, {suffix: part.state_dict() for suffix, part in weights.items()})
            bar.set_postfix({key: f"{row[key]:.3f}" for key in ("loss", "val_knn") if key in row})
    run.finish(weights)
    return Trained(net.model, run.history, run.best)


def make_learner(
    encoder: GroupedEncoder, recipe: ContrastiveRecipe, ranks: Ranks, n_images: int, embedding_size: int
) -> tuple[str, InstanceLearner]:
    """The learner of a recipe.

    Args:
        encoder: the network that is trained, with its head.
        recipe: settings of the training.
        ranks: the processes that share each batch.
        n_images: number of training images.
        embedding_size: number of features of an embedding.

    Returns:
        ``"npid"`` and a :class:`NPIDLearner`, or ``"moco"`` and a :class:`MoCoLearner`.

    Raises:
        TypeError: for another recipe.
    """
    if isinstance(recipe, NPIDRecipe):
        return "npid", NPIDLearner(encoder, recipe, ranks, n_images, embedding_size)
    if isinstance(recipe, MoCoRecipe):
        return "moco", MoCoLearner(encoder, recipe, ranks, n_images, embedding_size)
    raise TypeError(f"recipe must be NPIDRecipe or MoCoRecipe, got {type(recipe).__name__}")


def _head(net: EmbeddingModel, recipe: ContrastiveRecipe) -> tuple[nn.Module, int]:
    """The head that is added to a network, an identity if it has one, and the number of its outputs."""
    device = next(net.model.parameters()).device
    with torch.no_grad():
        width = check_embedding(net.model(probe_images(net.size, len(net.mean)).to(device))).shape[1]
    if net.head is not None or recipe.head == "none":
        return nn.Identity(), width
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        head: nn.Module = nn.Linear(width, recipe.embedding_size)
        if recipe.head == "mlp":
            head = nn.Sequential(nn.Linear(width, width), nn.ReLU(), head)
    return head, recipe.embedding_size


def _knn(
    learner: InstanceLearner,
    net: EmbeddingModel,
    bank: Dataset[Any] | None,
    val: Dataset[Any] | None,
    recipe: ContrastiveRecipe,
    ranks: Ranks,
    num_workers: int,
) -> dict[str, float]:
    """The k-NN accuracies, measured by the first process, the same in all processes."""
    if bank is None or val is None:
        return {}
    learner.eval()
    accuracies: dict[str, float] = {}

    def measure() -> None:
        voters = evenly_spaced(bank, recipe.knn_images)
        accuracies.update(knn_accuracies(learner.encoder, net, voters, val, recipe.k, ranks.device, num_workers))

    ranks.only_first(measure)
    return ranks.gather(accuracies)[0]
