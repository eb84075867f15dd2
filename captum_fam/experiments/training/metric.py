"""Metric learning for retrieval: Multi-Similarity and Margin loss, with the schedules of Wang et al. (CVPR 2019).

Batches are of a few classes with several images each; losses and miners are those of pytorch-metric-learning.
"""

from __future__ import annotations

import time
from bisect import bisect
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, distributed, nn
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision.transforms import v2
from tqdm.auto import tqdm

from captum_fam._files import staged
from captum_fam.embedding.batches import BatchLoader
from captum_fam.experiments.data.episodes import EpisodeSampler
from captum_fam.experiments.distributed import Ranks
from captum_fam.experiments.split_model import split_model
from captum_fam.experiments.training.images import fingerprint, generator_for
from captum_fam.experiments.training.sources import dataset_labels
from captum_fam.experiments.training.training_run import (
    Precision,
    Trained,
    TrainingRun,
    autocast,
    distribute,
    own_random_numbers,
)
from captum_fam.functional import unit
from captum_fam.metrics.retrieval import recall_at_k
from captum_fam.models import EmbeddingModel, EmbeddingNet

MetricLoss = Literal["multi-similarity", "margin"]
Batches = Iterable[tuple[Tensor, Tensor]]

# Second entry of the seeds, so that no two streams of random numbers meet; batches have none.
_AUGMENTATION, _STEP = 1, 2
_RECALLS = (1, 2, 4, 8)


@dataclass(frozen=True)
class MetricRecipe:
    """How an embedding is trained for retrieval; the defaults are those of Wang et al.'s code.

    Attributes:
        loss: ``"multi-similarity"`` (alpha 2, beta 40, lambda 0.5, mining margin 0.1) or ``"margin"`` (margin 0.2,
            beta fixed to 1.2, distance-weighted sampling from 0.5 to 1.4; Wu et al., ICCV 2017).
        steps: of the optimizer, Adam.
        learning_rate: divided by ten at each milestone.
        weight_decay: of all parameters.
        milestones: steps out of 3,000 at which the learning rate falls.
        way: classes in a batch; None: 16 for Multi-Similarity, 24 for Margin.
        images: of each class in a batch.
        period: steps between two measurements of the recall, and checkpoints.
        seed: of batches, augmentation, mining and new heads.
    """

    loss: MetricLoss = "multi-similarity"
    steps: int = 3000
    learning_rate: float = 3e-5
    weight_decay: float = 5e-4
    milestones: tuple[int, ...] = (1200, 2400)
    way: int | None = None
    images: int = 5
    period: int = 200
    seed: int = 1

    def __post_init__(self) -> None:
        if self.loss not in ("multi-similarity", "margin"):
            raise ValueError(f'loss must be "multi-similarity" or "margin", got {self.loss!r}')
        if self.steps % self.period:
            raise ValueError(f"steps={self.steps} must be a multiple of period={self.period}")

    @property
    def classes(self) -> int:
        """In a batch."""
        return self.way or {"multi-similarity": 16, "margin": 24}[self.loss]

    def rate(self, step: int) -> float:
        """The learning rate of a step, counted from zero."""
        return self.learning_rate * 0.1 ** bisect(self.milestones, 3000 * step / self.steps)

    def make_loss(self) -> Callable[[Tensor, Tensor], Tensor]:
        """From unit embeddings and labels to the loss of the pairs or triplets that the miner picks.

        Raises:
            ImportError: without pytorch-metric-learning.
        """
        try:
            from pytorch_metric_learning import losses, miners
        except ImportError as error:
            raise ImportError(
                'metric learning needs pytorch-metric-learning: pip install "captum-fam[train]"'
            ) from error
        if self.loss == "margin":
            loss: Any = losses.MarginLoss(margin=0.2, beta=1.2)
            miner: Any = miners.DistanceWeightedMiner(cutoff=0.5, nonzero_loss_cutoff=1.4)
        else:
            # The paper's code drops positives of s >= 1 - 1e-5, to be rid of each image's pair with itself. There is no
            # such pair here, and other images of the class count however near they are.
            loss = losses.MultiSimilarityLoss(alpha=2, beta=40, base=0.5)
            miner = miners.MultiSimilarityMiner(epsilon=0.1)
        return lambda embeddings, labels: loss(embeddings, labels, miner(embeddings, labels))


def new_head(n_features: int, embedding_size: int, seed: int = 0) -> nn.Linear:
    """A linear head, Kaiming normal (fan-out), bias zero."""
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
    """Train a network for retrieval, and keep the step of the best Recall@1 on the validation classes.

    Images are cropped at random (16 to 100 % of the area) and mirrored; batch normalization keeps its statistics. A
    run that is killed goes on after its last measurement, and ends as it would have. With several processes each step
    is the same as with one: all pairs of a batch count.

    Args:
        net: as :func:`~captum_fam.models.create_model` gives it, trained in place. One without a head gets a linear
            one, in files of its own: ``best-head.safetensors``.
        train: items ``(image, label)`` or ``(image, label, boxes)``, with ``labels``; images of any size, float in
            [0, 1], not normalized.
        val: the same of other classes, of one size; None: the last step is kept.
        out: folder of checkpoints and log, see :class:`~captum_fam.experiments.training.TrainingRun`.
        recipe: None: the defaults.
        embedding_size: J, of the head that is added.
        pooling: before the head that is added; None: the model's.
        num_workers: processes that read images.
        ranks: the processes that share each step, and the device.
        precision: of the network; the loss is in float32.
        progress: show a progress bar.
        tensorboard: write curves for TensorBoard.

    Returns:
        Images to embeddings, with the best weights, and the log: learning rate, loss, Recall@K of the validation
        classes.

    Raises:
        ImportError: without pytorch-metric-learning.
        ValueError: for a network without head that cannot be cut before its pooling, data that are too few for a
            batch, or a folder with another run.

    Example:
        >>> net = create_model("multi_similarity_bn_inception")
        >>> load_weights(net.model.features, "bn_inception-52deb4733.pth", [IMAGENET_BN_INCEPTION])
        >>> train_metric(net, CUB200(root, "retrieval-train"), None, "runs/ms", ranks=Ranks(device="cuda"))
    """
    recipe, ranks = recipe or MetricRecipe(), ranks or Ranks()
    model, weights = net.model, {"": net.model}
    if net.head is None:
        parts = split_model(net)
        pooling = pooling or parts.tail.pooling
        with torch.no_grad():
            width = pooling(parts.backbone(torch.zeros(1, 3, net.size, net.size, device=parts.device))).shape[1]
        head = new_head(width, embedding_size, recipe.seed)
        model, weights = EmbeddingNet(parts.backbone, pooling, head, unit_norm=True), {"": net.model, "-head": head}
    elif pooling is not None:
        raise ValueError(f"pooling: {net.name} has a head, trained for the pooling that it has")
    sampler = _sampler(dataset_labels(train), recipe)
    crop = v2.Compose(
        [
            v2.RandomResizedCrop(net.size, scale=(0.16, 1.0), antialias=True),
            v2.RandomHorizontalFlip(),
            v2.Normalize(net.mean, net.std),
        ]
    )
    augmented = _Augmented(train, crop, recipe.seed)

    def batches(first: int) -> Batches:
        return DataLoader(augmented, batch_sampler=_Steps(sampler, first, ranks), num_workers=num_workers)

    def embed() -> tuple[Tensor, Tensor]:
        assert val is not None
        return embed_dataset(model, net, val, ranks.device, num_workers)

    settings = {
        "model": net.name,
        "embedding_size": embedding_size,
        "pooling": str(pooling),
        "precision": precision,
        "train": fingerprint(dataset_labels(train)),
    }
    return _fit(
        model, weights, batches, None if val is None else embed, out, recipe, settings, ranks, precision, progress,
        tensorboard,
    )  # fmt: skip


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
    """Train a linear head on pooled features of a network that stays as it is: seconds on a CPU.

    Args:
        features: ``(n, N)``, of :func:`pooled_features`.
        labels: ``(n,)``.
        val: features and labels of other classes, to choose the best step; None: the last step is kept.
        out: folder of ``best-head.safetensors`` and log, see :class:`~captum_fam.experiments.training.TrainingRun`.
        recipe: None: the defaults with a learning rate of 1e-3, a new head having further to go than a network.
        embedding_size: J.
        progress: show a progress bar.
        tensorboard: write curves for TensorBoard.

    Returns:
        The head, a ``torch.nn.Linear``, and the log as of :func:`train_metric`.

    Raises:
        ImportError: without pytorch-metric-learning.
        ValueError: for features that are too few for a batch, or a folder with another run.
    """
    recipe = recipe or MetricRecipe(learning_rate=1e-3)
    head = new_head(features.shape[1], embedding_size, recipe.seed)
    sampler = _sampler(labels, recipe)

    def batches(first: int) -> Iterator[tuple[Tensor, Tensor]]:
        for step in range(first, recipe.steps):
            items = sampler.episode(step).support.flatten()
            yield features[items], labels[items]

    @torch.no_grad()
    def embed() -> tuple[Tensor, Tensor]:
        assert val is not None
        return unit(head(val[0])), val[1]

    settings = {"model": "head", "embedding_size": embedding_size, "train": fingerprint(features, labels)}
    evaluate = None if val is None else embed
    return _fit(
        head, {"-head": head}, batches, evaluate, out, recipe, settings, Ranks(), "float32", progress, tensorboard
    )


def _fit(
    model: nn.Module,
    weights: dict[str, nn.Module],
    batches: Callable[[int], Batches],
    embed: Callable[[], tuple[Tensor, Tensor]] | None,
    out: str | Path,
    recipe: MetricRecipe,
    settings: dict[str, Any],
    ranks: Ranks,
    precision: Precision,
    progress: bool,
    tensorboard: bool,
) -> Trained:
    compute_loss = recipe.make_loss()
    model.to(ranks.device)
    optimizer = torch.optim.Adam(model.parameters(), recipe.learning_rate, weight_decay=recipe.weight_decay)
    scaler = torch.amp.GradScaler(torch.device(ranks.device).type, enabled=precision == "float16")
    run = TrainingRun(
        out,
        {"recipe": "metric", **asdict(recipe), "way": recipe.classes, **settings, "val": embed is not None},
        None if embed is None else "val_recall@1",
        {"model": model, "optimizer": optimizer, "scaler": scaler},
        ranks,
        tensorboard,
    )
    stepper = distribute(model, ranks)
    step, losses, start = run.epoch * recipe.period, [], time.monotonic()
    bar = tqdm(total=recipe.steps, initial=step, desc=recipe.loss, disable=not (progress and ranks.is_first))
    _train_mode(model)
    with bar, own_random_numbers(ranks.device):
        for inputs, labels in batches(step) if step < recipe.steps else ():
            torch.manual_seed(generator_for(recipe.seed, _STEP, step).initial_seed())
            for group in optimizer.param_groups:
                group["lr"] = recipe.rate(step)
            with autocast(ranks.device, precision):
                embeddings = stepper(inputs.to(ranks.device))
            everyone, everyones = _gather(unit(embeddings.float()), labels.to(ranks.device), ranks)
            loss = compute_loss(everyone, everyones)
            optimizer.zero_grad(set_to_none=True)
            # Each process holds the gradient of its own embeddings alone, and they are averaged.
            scaler.scale(loss * ranks.size).backward()
            scaler.step(optimizer)
            scaler.update()
            losses.append(loss.detach())
            step += 1
            bar.update()
            if step % recipe.period == 0:
                mean = float(torch.stack(losses).mean())
                if not mean < float("inf"):
                    raise RuntimeError(f"the loss before step {step} is {mean}; lower the learning rate")
                row = {
                    "epoch": run.epoch,
                    "step": step,
                    "learning_rate": recipe.rate(step - 1),
                    "loss": mean,
                    **({} if embed is None else {f"val_{k}": v for k, v in _recalls(model, embed).items()}),
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


def recalls_at(embeddings: Tensor, labels: Tensor, ks: Sequence[int] = _RECALLS) -> dict[str, float]:
    """Mean Recall@K by name, every embedding a query and all others its gallery."""
    means = recall_at_k(embeddings, labels, ks).nanmean(0).tolist()
    return {f"recall@{k}": mean for k, mean in zip(ks, means, strict=True)}


def _train_mode(model: nn.Module) -> None:
    """Training mode, but for batch normalization, whose statistics stay those of the pretraining."""
    model.train()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()


def _gather(embeddings: Tensor, labels: Tensor, ranks: Ranks) -> tuple[Tensor, Tensor]:
    """The batch of all processes; gradients go to the embeddings of this one."""
    if ranks.size == 1:
        return embeddings, labels
    rows = [torch.empty_like(embeddings) for _ in range(ranks.size)]
    distributed.all_gather(rows, embeddings.detach().contiguous())
    rows[ranks.rank] = embeddings
    names = [torch.empty_like(labels) for _ in range(ranks.size)]
    distributed.all_gather(names, labels)
    return torch.cat(rows), torch.cat(names)


def _sampler(labels: Tensor, recipe: MetricRecipe) -> EpisodeSampler:
    return EpisodeSampler(labels, recipe.classes, recipe.images, 0, recipe.steps, recipe.seed)


class _Steps(Sampler[list[tuple[int, int]]]):
    """This process's items of every step, with the number of the step."""

    def __init__(self, sampler: EpisodeSampler, first: int, ranks: Ranks) -> None:
        if sampler.way * sampler.shot % ranks.size:
            raise ValueError(f"a batch of {sampler.way * sampler.shot} cannot be shared by {ranks.size} processes")
        self.sampler = sampler
        self.first = first
        self.ranks = ranks

    def __len__(self) -> int:
        return self.sampler.episodes - self.first

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for step in range(self.first, self.sampler.episodes):
            # In one piece, so that the batch that is gathered has its order, on which the mining depends.
            mine = self.sampler.episode(step).support.flatten().chunk(self.ranks.size)[self.ranks.rank]
            yield [(step, item) for item in mine.tolist()]


class _Augmented(Dataset[tuple[Tensor, int]]):
    """Items changed at random, as depends on seed, step and item alone."""

    def __init__(self, dataset: Dataset[Any], transform: Callable[[Tensor], Tensor], seed: int) -> None:
        self.dataset = dataset
        self.transform = transform
        self.seed = seed

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int]:
        step, item = key
        image, label = self.dataset[item][:2]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(generator_for(self.seed, _AUGMENTATION, step, item).initial_seed())
            return self.transform(image), int(label)


@torch.no_grad()
def embed_dataset(
    model: nn.Module,
    net: EmbeddingModel,
    dataset: Dataset[Any],
    device: torch.device | str = "cpu",
    num_workers: int = 0,
    progress: bool = False,
) -> tuple[Tensor, Tensor]:
    """What a module makes of a dataset: ``(n, J)`` float32 and labels ``(n,)``, both on the CPU.

    Args:
        model: in eval mode, takes normalized images ``(B, 3, H, W)``.
        net: gives the normalization.
        dataset: items ``(image, label)`` or ``(image, label, boxes)``, float in [0, 1], of one size.
        device: of the model.
        num_workers: processes that read images.
        progress: show a progress bar.
    """
    rows, labels = [], []
    loader = BatchLoader(dataset, num_workers=num_workers)
    for batch in tqdm(loader, desc="embed", unit="batch", disable=not progress):
        images = net.normalize(batch.images.to(device)).contiguous(memory_format=torch.channels_last)
        rows.append(model(images).float().cpu())
        labels.append(batch.labels)
    return torch.cat(rows), torch.cat(labels)


def pooled_features(
    net: EmbeddingModel,
    dataset: Dataset[Any],
    pooling: nn.Module | None = None,
    file: str | Path | None = None,
    *,
    device: torch.device | str = "cpu",
    num_workers: int = 0,
    progress: bool = False,
) -> tuple[Tensor, Tensor]:
    """Pooled activations of a dataset, on which a head is trained: ``(n, N)``, and labels ``(n,)``.

    Args:
        net: whose layer is pooled.
        dataset: items ``(image, label)`` or ``(image, label, boxes)``, float in [0, 1], of one size.
        pooling: None: the model's.
        file: keeps them; read instead, if it is there.
        device: to compute on.
        num_workers: processes that read images.
        progress: show a progress bar.

    Raises:
        ValueError: if the model cannot be cut before its pooling.
    """
    if file is not None and Path(file).is_file():
        features, labels = torch.load(file, weights_only=True)
        return features, labels
    parts = split_model(net).fast_copy(device)
    trunk = nn.Sequential(parts.backbone, pooling or parts.tail.pooling)
    made = embed_dataset(trunk, net, dataset, device, num_workers, progress)
    if file is not None:
        with staged(Path(file).parent) as scratch:
            torch.save(made, scratch / Path(file).name)
    return made
