"""Episodic training of few-shot networks, by the recipe of Cross Attention Network (Hou et al., NeurIPS 2019).

The attention of that network is left out, as in the FAM paper. The weights of the two losses are learned (Kendall et
al., CVPR 2018).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from captum_fam._files import lock_folder, sha256_of
from captum_fam._progress import progress_bar
from captum_fam.embedding.ranks import Ranks
from captum_fam.experiments.data.episodes import EpisodeItems, EpisodeSampler
from captum_fam.experiments.fitting import fit
from captum_fam.experiments.training.few_shot_accuracy import embed_bytes, few_shot_accuracy
from captum_fam.experiments.training.few_shot_learner import FewShotLearner
from captum_fam.experiments.training.few_shot_recipe import FewShotRecipe
from captum_fam.experiments.training.images import LabeledImages, generator_for
from captum_fam.experiments.training.training_run import (
    Precision,
    Trained,
    TrainingRun,
    autocast,
    distribute,
    random_numbers_restored,
)
from captum_fam.models import EmbeddingModel

# Second entries of the seeds, which keep the streams of random numbers apart; the seeds of episodes have none.
_AUGMENTATION, _EPOCH = 1, 2


def initialize(model: nn.Module, seed: int = 0) -> None:
    """Draw the weights of all convolutions as in Cross Attention Network: He normal by fan-out, with biases of zero.

    Args:
        model: network whose weights change in place.
        seed: seed of the weights. Default: 0.

    Example:
        >>> model = nn.Conv2d(3, 8, 3)
        >>> initialize(model)
        >>> float(model.bias.detach().abs().sum())
        0.0
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)


def train_few_shot(
    net: EmbeddingModel,
    base: LabeledImages,
    val: LabeledImages,
    out: str | Path,
    recipe: FewShotRecipe | None = None,
    *,
    ranks: Ranks | None = None,
    precision: Precision = "float32",
    progress: bool = False,
    tensorboard: bool = False,
) -> Trained:
    """Train a network on episodes of the base classes, and keep the epoch that is best on the validation classes.

    A run that was killed continues after its last complete epoch when it is started again, and has the same result as
    an undisturbed run: its random numbers depend only on the seed and on their purpose. A step has the same result with
    any number of processes, except for batch normalization, which uses only the images of its own process.

    Args:
        net: result of :func:`~captum_fam.models.create_model`, trained in place; the embedding must be the average of
            the map of the layer.
        base: training images, of ``net.size``.
        val: images of other classes, for the validation.
        out: folder of checkpoints and log, see :class:`~captum_fam.experiments.training.TrainingRun`.
        recipe: settings of the training; None for the settings of Cross Attention Network. Default: None.
        ranks: the processes that share each step, and the device. Default: this process alone, on the CPU.
        precision: precision of the network. ``"bfloat16"`` halves the time, also on most CPUs; ``"float16"`` is for
            older GPUs. Default: ``"float32"``.
        progress: show a progress bar. Default: False.
        tensorboard: write curves for TensorBoard. Default: False.

    Returns:
        ``net.model`` with the best weights, and the log: learning rate, losses, weights of the losses, training
        accuracy and validation accuracy.

    Raises:
        ValueError: for a network whose embedding is not the average of a map, too few data for an episode, a folder
            with another run, an unsuitable precision, or ``episodes_per_step`` that is no multiple of the number of
            processes.
        RuntimeError: if the loss is NaN or infinite.
        ImportError: without safetensors, or without tensorboard if it is requested.

    Example:
        >>> net = create_model("conv4net")
        >>> base, val = (read_images(CUB200(root, split, net.geometry)) for split in ("base", "val"))
        >>> trained = train_few_shot(net, base, val, "runs/conv4net", FewShotRecipe(epochs=30, episodes=200))
        >>> trained_net = create_model("conv4net", "runs/conv4net/best.safetensors")
    """
    recipe, ranks = recipe or FewShotRecipe(), ranks or Ranks()
    if recipe.episodes_per_step % ranks.size:
        raise ValueError(
            f"episodes_per_step={recipe.episodes_per_step} must be a multiple of the {ranks.size} processes"
        )
    autocast(ranks.device, precision)  # refuses a precision before the folder of the run is made
    recipe.check_labels(base.labels, val.labels)
    classes, positions = base.labels.unique(return_inverse=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        learner = FewShotLearner(net, len(classes), recipe).to(ranks.device).to(memory_format=torch.channels_last)
    optimizer = _optimizer(learner, recipe)
    scaler = torch.amp.GradScaler(torch.device(ranks.device).type, enabled=precision == "float16")
    sampler = EpisodeSampler(
        positions, recipe.way, recipe.shot, recipe.query, recipe.epochs * recipe.episodes, recipe.seed
    )
    settings = {
        "recipe": "few-shot",
        "model": net.name,
        **asdict(recipe),
        "base": sha256_of(*base),
        "val": sha256_of(*val),
        "precision": precision,
    }
    parts = {"learner": learner, "optimizer": optimizer, "scaler": scaler}
    run = TrainingRun(out, settings, "val_accuracy", parts, ranks, tensorboard)
    stepper = distribute(learner, ranks)
    images = base.images.to(ranks.device)
    sums = torch.zeros(4, device=ranks.device)  # of the losses and the accuracy over an epoch

    def loss_of(episodes: Sequence[EpisodeItems]) -> Tensor:
        batch, truth = _batch(episodes, images, positions, net, recipe)
        with autocast(ranks.device, precision):
            losses = stepper(batch, truth.to(ranks.device))
        sums.add_(torch.stack([loss.detach() for loss in losses]))
        total: Tensor = losses.total
        return total

    bar = progress_bar(
        total=recipe.epochs * recipe.episodes,
        initial=run.epoch * recipe.episodes,
        desc=net.name,
        unit="episode",
        shown=progress and ranks.is_first,
    )
    with lock_folder(out, ranks.is_first), bar, random_numbers_restored(ranks.device):
        for epoch in range(run.epoch, recipe.epochs):
            start = time.monotonic()
            # For dropout. Each epoch has its own seed, so that a resumed run draws the same numbers as any other run.
            torch.manual_seed(generator_for(recipe.seed, _EPOCH, epoch, ranks.rank).initial_seed())
            for group in optimizer.param_groups:
                group["lr"] = recipe.learning_rate(epoch)
            learner.train()
            sums.zero_()
            for _ in fit(_steps(sampler, recipe, epoch, ranks), loss_of, optimizer, scaler=scaler):
                bar.update(recipe.episodes_per_step)
            learner.eval()
            n_steps = recipe.episodes // recipe.episodes_per_step
            mean = sum(ranks.gather((sums / n_steps).cpu()), torch.zeros(4)) / ranks.size
            if not mean.isfinite().all():
                raise RuntimeError(f"the loss of epoch {epoch} is {mean[0]}; lower the learning rate or use float32")
            embeddings = embed_bytes(net, val.images, ranks.device, precision)
            accuracy, interval = few_shot_accuracy(
                embeddings, val.labels, way=recipe.way, shot=recipe.shot, episodes=recipe.val_episodes
            )
            row = {
                "epoch": epoch,
                "learning_rate": recipe.learning_rate(epoch),
                **dict(zip(("loss", "nearest_loss", "global_loss", "accuracy"), mean.tolist(), strict=True)),
                **dict(zip(("a", "b"), learner.log_variances.tolist(), strict=True)),
                "val_accuracy": accuracy,
                "val_interval": interval,
                "seconds": time.monotonic() - start,
            }
            run.finish_epoch(row, {"": net.model.state_dict()})
            bar.set_postfix(loss=f"{row['loss']:.3f}", val=f"{accuracy:.1%}", best=f"{run.best['val_accuracy']:.1%}")
    run.finish({"": net.model})
    return Trained(net.model, run.history, run.best)


def _optimizer(learner: FewShotLearner, recipe: FewShotRecipe) -> torch.optim.SGD:
    decayed = [p for name, p in learner.named_parameters() if name != "log_variances"]
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": recipe.weight_decay},
        {"params": [learner.log_variances], "weight_decay": 0.0},
    ]
    return torch.optim.SGD(groups, recipe.learning_rates[0], momentum=recipe.momentum, nesterov=True)


def _steps(sampler: EpisodeSampler, recipe: FewShotRecipe, epoch: int, ranks: Ranks) -> Iterator[list[EpisodeItems]]:
    """The episodes of this process, for every step of an epoch."""
    first = epoch * recipe.episodes
    for step in range(first, first + recipe.episodes, recipe.episodes_per_step):
        yield [sampler.episode(number) for number in ranks.share(range(step, step + recipe.episodes_per_step))]


def _batch(
    episodes: Sequence[EpisodeItems], images: Tensor, positions: Tensor, net: EmbeddingModel, recipe: FewShotRecipe
) -> tuple[Tensor, Tensor]:
    """The augmented images and the base classes of episodes."""
    items = torch.stack([torch.cat([episode.support, episode.query], 1) for episode in episodes])
    generators = [generator_for(recipe.seed, _AUGMENTATION, episode.number) for episode in episodes]
    classes = torch.stack([episode.classes for episode in episodes])
    batch = images[items.flatten().to(images.device)]
    return recipe.augmentation(batch, net.mean, net.std, generators), classes
