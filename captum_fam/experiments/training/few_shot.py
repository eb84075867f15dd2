"""Episodic training of few-shot networks: the recipe of Cross Attention Network (Hou et al., NeurIPS 2019).

Without its attention, which the paper does not have, and with the weights of its two losses learned (Kendall et al.,
CVPR 2018).
"""

from __future__ import annotations

import time
from bisect import bisect
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize
from tqdm.auto import tqdm

from captum_fam.experiments.data.episodes import EpisodeItems, EpisodeSampler
from captum_fam.experiments.distributed import Ranks
from captum_fam.experiments.training.images import (
    Augmentation,
    LabeledImages,
    fingerprint,
    generator_for,
    normalize_bytes,
)
from captum_fam.experiments.training.training_run import (
    Precision,
    Trained,
    TrainingRun,
    autocast,
    distribute,
    own_random_numbers,
)
from captum_fam.functional import unit
from captum_fam.models import EmbeddingModel

Weighting = Literal["learned", "fixed"]

# Second entry of the seeds, so that no two streams of random numbers meet; episodes have none.
_AUGMENTATION, _EPOCH = 1, 2
_EVALUATION_BATCH = 256


@dataclass(frozen=True)
class FewShotRecipe:
    """How a few-shot network is trained; the defaults are those of Cross Attention Network.

    Attributes:
        way: classes an episode.
        shot: supports a class.
        query: queries a class.
        epochs: passes of ``episodes`` each. The learning rate falls at the same shares of them, whatever their number.
        episodes: in an epoch.
        episodes_per_step: whose gradients are averaged, over all processes.
        learning_rates: one more than milestones.
        milestones: epochs out of 90 at which the next learning rate begins.
        momentum: of SGD, Nesterov's.
        weight_decay: of all but the weights of the losses.
        scale: of the cosines in the nearest-neighbor loss.
        weighting: of the losses: ``"learned"``, or ``"fixed"`` to 0.5 for the nearest-neighbor loss and 1.
        augmentation: of the training images.
        val_episodes: of 15 queries a class, whose accuracy chooses the best epoch.
        seed: of episodes, augmentation, dropout and classifier.
    """

    way: int = 5
    shot: int = 1
    query: int = 6
    epochs: int = 90
    episodes: int = 1200
    episodes_per_step: int = 4
    learning_rates: tuple[float, ...] = (0.1, 0.006, 0.0012, 0.00024)
    milestones: tuple[int, ...] = (60, 70, 80)
    momentum: float = 0.9
    weight_decay: float = 5e-4
    scale: float = 7.0
    weighting: Weighting = "learned"
    augmentation: Augmentation = field(default_factory=Augmentation)
    val_episodes: int = 2000
    seed: int = 1

    def __post_init__(self) -> None:
        if len(self.learning_rates) != len(self.milestones) + 1:
            raise ValueError(
                f"learning_rates must be one more than the {len(self.milestones)} milestones, "
                f"got {len(self.learning_rates)}"
            )
        if self.episodes % self.episodes_per_step:
            raise ValueError(
                f"episodes={self.episodes} must be a multiple of {self.episodes_per_step}, those of a step"
            )
        if self.weighting not in ("learned", "fixed"):
            raise ValueError(f'weighting must be "learned" or "fixed", got {self.weighting!r}')

    def learning_rate(self, epoch: int) -> float:
        """Of an epoch, counted from zero."""
        return self.learning_rates[bisect(self.milestones, 90 * epoch / self.epochs)]


class FewShotLosses(NamedTuple):
    """Of one step.

    Attributes:
        total: what the optimizer lowers.
        nearest: nearest-neighbor loss: which of the episode's classes, at every position of the query map.
        everywhere: global loss: which of all base classes, at every position of the query map.
        accuracy: share of the queries whose average is nearest to the support of their class.
    """

    total: Tensor
    nearest: Tensor
    everywhere: Tensor
    accuracy: Tensor


class FewShotLearner(nn.Module):
    """A network with its losses: episodes of images in, losses out.

    With f the map of an image and t_w the average of the support maps of class w over shots and positions:
    L_nn = CE(scale * cos(f_p, t_w)), L_glob = CE(C f_p) with a classifier C of all base classes, both averaged over
    the positions p of the query maps; L = exp(-a) L_nn + exp(-b) L_glob + (a + b) / 2, a and b trained from 0.

    Args:
        net: whose embedding is the average of the map of its layer.
        n_classes: base classes.
        recipe: way, shot, query, scale and weighting.
    """

    def __init__(self, net: EmbeddingModel, n_classes: int, recipe: FewShotRecipe) -> None:
        super().__init__()
        self.model = net.model
        self.layer = net.layer
        self.recipe = recipe
        self.classifier = nn.Conv2d(_n_channels(net), n_classes, 1)
        self.log_variances = nn.Parameter(torch.zeros(2), requires_grad=recipe.weighting == "learned")

    def forward(self, images: Tensor, classes: Tensor) -> FewShotLosses:
        """The losses of some episodes.

        Args:
            images: of each episode class by class, the supports of a class before its queries:
                ``(E * way * (shot + query), 3, H, W)``.
            classes: positions among the base classes, ``(E, way)``.
        """
        maps = _maps(self.model, self.layer, images)[0]
        with torch.autocast(maps.device.type, enabled=False):
            return self.losses(maps.float(), classes)

    def losses(self, maps: Tensor, classes: Tensor) -> FewShotLosses:
        """The same of the maps ``(E * way * (shot + query), N, h, w)`` of these images."""
        recipe = self.recipe
        # E episodes, W classes, I images of a class, N channels, P positions.
        maps = maps.unflatten(0, (-1, recipe.way, recipe.shot + recipe.query)).flatten(4)
        prototypes = unit(maps[:, :, : recipe.shot].mean((2, 4)))
        queries = maps[:, :, recipe.shot :].flatten(1, 2)
        cosines = torch.einsum("eqnp,ewn->eqwp", normalize(queries, dim=2), prototypes)
        truth = torch.arange(recipe.way, device=maps.device).repeat_interleave(recipe.query).expand(len(queries), -1)
        nearest = _everywhere(recipe.scale * cosines.flatten(0, 1), truth)
        logits = self.classifier(queries.flatten(0, 1)[..., None])[..., 0]
        everywhere = _everywhere(logits, classes.repeat_interleave(recipe.query, 1))
        if recipe.weighting == "learned":
            weights = (-self.log_variances).exp()
            total = weights[0] * nearest + weights[1] * everywhere + self.log_variances.sum() / 2
        else:
            total = 0.5 * nearest + everywhere
        scores = torch.einsum("eqn,ewn->eqw", queries.mean(3), prototypes)
        return FewShotLosses(total, nearest, everywhere, (scores.argmax(2) == truth).float().mean())


def _maps(model: nn.Module, layer: str, images: Tensor) -> tuple[Tensor, Tensor]:
    """What a layer gives, and the embedding."""
    found: list[Tensor] = []
    handle = model.get_submodule(layer).register_forward_hook(lambda _, __, output: found.append(output))
    try:
        embedding = model(images)
    finally:
        handle.remove()
    return found[0], embedding


def _everywhere(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of ``(B, C, P)`` with one class for all positions of a map."""
    return cross_entropy(logits, targets.reshape(-1, 1).expand(-1, logits.shape[2]))


def _n_channels(net: EmbeddingModel) -> int:
    """The channels of the layer; refuses a network whose embedding is not the average of them."""
    probe = torch.rand(2, 3, net.size, net.size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        maps, embedding = _maps(net.model.eval(), net.layer, probe.to(next(net.model.parameters()).device))
    if maps.dim() != 4 or maps.shape[1:2] != embedding.shape[1:]:
        same = False
    else:
        same = torch.allclose(unit(maps.mean((2, 3))), unit(embedding), atol=1e-4)
    if not same:
        raise ValueError(
            f"model {net.name}: its embedding is not the average of the map of {net.layer!r}, which few-shot training "
            "needs; choose a network without a head, or metric learning"
        )
    return maps.shape[1]


def initialize(model: nn.Module, seed: int = 0) -> None:
    """Draw the weights of convolutions as Cross Attention Network does: He normal, fan-out; biases zero."""
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

    A run that is killed goes on after its last whole epoch when it is started again, and ends as it would have:
    random numbers depend on the seed and on what they are for. With several processes each step is the same as with
    one, but for batch normalization, which sees the images of its own process.

    Args:
        net: as :func:`~captum_fam.models.create_model` gives it; X
        base: training images, of ``net.size``.
        val: images of other classes.
        out: folder of checkpoints and log, see :class:`~captum_fam.experiments.training.TrainingRun`.
        recipe: None: the defaults.
        ranks: the processes that share each step, and the device.
        precision: ``"bfloat16"`` halves the time also on most CPUs; ``"float16"`` is for older GPUs.
        progress: show a progress bar.
        tensorboard: write curves for TensorBoard.

    Returns:
        ``net.model`` with the best weights, and the log: learning rate, losses, their weights, training and validation
        accuracy.

    Raises:
        ValueError: for a network whose embedding is not the average of a map, data that are too few for an episode,
            or a folder with another run.
        RuntimeError: if the loss is NaN or infinite.

    Example:
        >>> net = create_model("conv4net")
        >>> base, val = (read_images(CUB200(root, split, net.geometry)) for split in ("base", "val"))
        >>> trained = train_few_shot(net, base, val, "runs/conv4net", FewShotRecipe(epochs=30, episodes=200))
        >>> later = create_model("conv4net", "runs/conv4net/best.safetensors")
    """
    recipe, ranks = recipe or FewShotRecipe(), ranks or Ranks()
    if recipe.episodes_per_step % ranks.size:
        raise ValueError(
            f"episodes_per_step={recipe.episodes_per_step} must be a multiple of the {ranks.size} processes"
        )
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
        "base": fingerprint(*base),
        "val": fingerprint(*val),
        "precision": precision,
    }
    parts = {"learner": learner, "optimizer": optimizer, "scaler": scaler}
    run = TrainingRun(out, settings, "val_accuracy", parts, ranks, tensorboard)
    stepper = distribute(learner, ranks)
    images = base.images.to(ranks.device)
    bar = tqdm(
        total=recipe.epochs * recipe.episodes,
        initial=run.epoch * recipe.episodes,
        desc=net.name,
        unit="episode",
        disable=not (progress and ranks.is_first),
    )
    with bar, own_random_numbers(ranks.device):
        for epoch in range(run.epoch, recipe.epochs):
            start = time.monotonic()
            torch.manual_seed(generator_for(recipe.seed, _EPOCH, epoch, ranks.rank).initial_seed())
            for group in optimizer.param_groups:
                group["lr"] = recipe.learning_rate(epoch)
            learner.train()
            sums = torch.zeros(4, device=ranks.device)
            for episodes in _steps(sampler, recipe, epoch, ranks):
                batch, truth = _batch(episodes, images, positions, net, recipe)
                with autocast(ranks.device, precision):
                    losses = stepper(batch, truth.to(ranks.device))
                optimizer.zero_grad(set_to_none=True)
                scaler.scale(losses.total).backward()
                scaler.step(optimizer)
                scaler.update()
                sums += torch.stack([loss.detach() for loss in losses])
                bar.update(recipe.episodes_per_step)
            learner.eval()
            n_steps = recipe.episodes // recipe.episodes_per_step
            mean = sum(ranks.gather((sums / n_steps).cpu()), torch.zeros(4)) / ranks.size
            if not mean.isfinite().all():
                raise RuntimeError(f"the loss of epoch {epoch} is {mean[0]}; lower the learning rate or use float32")
            accuracy, interval = few_shot_accuracy(
                embed_bytes(net, val.images, ranks.device, precision), val.labels,
                way=recipe.way, shot=recipe.shot, episodes=recipe.val_episodes,
            )  # fmt: skip
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
    """This process's episodes of every step of an epoch."""
    first = epoch * recipe.episodes
    for step in range(first, first + recipe.episodes, recipe.episodes_per_step):
        yield [sampler.episode(number) for number in ranks.share(range(step, step + recipe.episodes_per_step))]


def _batch(
    episodes: Sequence[EpisodeItems], images: Tensor, positions: Tensor, net: EmbeddingModel, recipe: FewShotRecipe
) -> tuple[Tensor, Tensor]:
    """Augmented images and base classes of some episodes."""
    items = torch.stack([torch.cat([episode.support, episode.query], 1) for episode in episodes])
    generators = [generator_for(recipe.seed, _AUGMENTATION, episode.number) for episode in episodes]
    chosen = images[items.flatten().to(images.device)]
    return recipe.augmentation(chosen, net.mean, net.std, generators), torch.stack([e.classes for e in episodes])


@torch.no_grad()
def embed_bytes(
    net: EmbeddingModel, images: Tensor, device: torch.device | str = "cpu", precision: Precision = "float32"
) -> Tensor:
    """Embeddings ``(n, J)``, float32 on the CPU, of decoded images ``(n, 3, H, W)`` uint8."""
    parts = []
    for batch in images.split(_EVALUATION_BATCH):
        pixels = normalize_bytes(batch.to(device), net.mean, net.std).contiguous(memory_format=torch.channels_last)
        with autocast(device, precision):
            parts.append(net.model(pixels).float().cpu())
    return torch.cat(parts)


def few_shot_accuracy(
    embeddings: Tensor,
    labels: Tensor,
    *,
    way: int = 5,
    shot: int = 1,
    query: int = 15,
    episodes: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """Accuracy over episodes by the cosine to a class's mean support, and the half-width of its 95 % interval.

    Args:
        embeddings: ``(n, J)``.
        labels: ``(n,)``.
        way: classes an episode.
        shot: supports a class.
        query: queries a class.
        episodes: how many.
        seed: of the episodes.

    Returns:
        Mean and 1.96 standard errors over episodes, both as shares.
    """
    sampler = EpisodeSampler(labels, way, shot, query, episodes, seed)
    truth = torch.arange(way).repeat_interleave(query)
    right = torch.empty(episodes)
    for episode in sampler:
        prototypes = embeddings[episode.support].mean(1)
        scores = embeddings[episode.query.flatten()] @ unit(prototypes).T
        right[episode.number] = (scores.argmax(1) == truth).float().mean()
    return float(right.mean()), float(1.96 * right.std(correction=0) / episodes**0.5)
