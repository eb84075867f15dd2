"""Stage ``few-shot``: ResNet-12 and ResNet-18 trained on episodes for a fixed time."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.gpu_stages.report import Case, Report
from captum_fam.embedding.ranks import Ranks
from captum_fam.experiments.training import (
    FewShotRecipe,
    LabeledImages,
    embed_bytes,
    few_shot_accuracy,
    initialize,
    train_few_shot,
)
from captum_fam.experiments.training.sources import few_shot_images
from captum_fam.models import create_model

NETWORKS = ("resnet12", "few_shot_resnet18")
EPOCHS = 6
_SMALL_SIDE = 32


def run(case: Case, report: Report) -> None:
    """Time a few episodes, then train as many as fit into the time, and measure the novel classes.

    Args:
        case: what the stage is told.
        report: the report of the stage.
    """
    names = ("conv4net",) if case.is_small else NETWORKS
    precision = "float32" if case.device == "cpu" else "bfloat16"
    ranks = Ranks(device=case.device)
    trial = FewShotRecipe(epochs=1, episodes=40, val_episodes=200)
    if case.is_small:
        trial = FewShotRecipe(epochs=1, episodes=4, query=1, val_episodes=10)
    report.fact(data="noise" if case.is_small else Path(case.cub).name, precision=precision)
    for number, name in enumerate(names):
        if report.stops_before(name, 1.0):
            return
        net = create_model(name, size=_SMALL_SIDE if case.is_small else None)
        initialize(net.model, trial.seed)
        folder = Path(case.folder)
        images = _noise() if case.is_small else few_shot_images(case.cub, net, folder, num_workers=8)
        state = {key: value.clone() for key, value in net.model.state_dict().items()}
        seconds = []
        # The first episodes choose kernels and fill caches; the second run of the same length is timed.
        for attempt in ("warm", "timed"):
            net.model.load_state_dict(state)
            run_of = train_few_shot(
                net,
                images["base"],
                images["val"],
                folder / f"{name}-{attempt}",
                trial,
                ranks=ranks,
                precision=precision,
            )
            seconds.append(run_of.log[0]["seconds"])
        per_episode = seconds[-1] / trial.episodes
        mine = report.left / (len(names) - number)
        # A part is kept for the validation of every epoch, and for the novel classes.
        episodes = int(0.7 * mine / per_episode / EPOCHS) // 4 * 4
        episodes = min(episodes, 8) if case.is_small else episodes
        if episodes < 4:
            report.stops_before(f"the training of {name}", float("inf"))
            return
        net.model.load_state_dict(state)
        recipe = replace(trial, epochs=2 if case.is_small else EPOCHS, episodes=episodes)
        start = time.monotonic()
        trained = train_few_shot(
            net, images["base"], images["val"], folder / name, recipe, ranks=ranks, precision=precision
        )
        taken = time.monotonic() - start
        novel = images["novel"]
        accuracy, interval = few_shot_accuracy(
            embed_bytes(net, novel.images, case.device), novel.labels, episodes=20 if case.is_small else 2000
        )
        report.row(
            network=name,
            episodes=recipe.epochs * episodes,
            seconds=taken,
            episodes_per_s=recipe.epochs * episodes / taken,
            images_per_s=recipe.epochs * episodes * recipe.way * (recipe.shot + recipe.query) / taken,
            validation=trained.best["val_accuracy"],
            novel=accuracy,
            interval=interval,
            loss=trained.log[-1]["loss"],
        )


def _noise() -> dict[str, LabeledImages]:
    """Images for a rehearsal: five classes, with enough items for the episodes that measure an accuracy."""
    labels = torch.arange(5).repeat_interleave(16)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (len(labels), 3, _SMALL_SIDE, _SMALL_SIDE), generator=generator, dtype=torch.uint8)
    return {split: LabeledImages(images, labels) for split in ("base", "val", "novel")}
