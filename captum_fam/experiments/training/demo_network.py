"""Trains the demo's few-shot network on planted scenes.

The command is ``python -m captum_fam.experiments.training.demo_network --seed 0``.

The network learns from the base classes of `captum_fam.demo.scenes` which objects stand in a scene: a cosine classifier
over the base classes, its target spread evenly over all objects of the scene. Object and distractors count alike, so no
class of objects is learned as background, and no mask is ever shown to the network. The classifier is then dropped. On
the novel classes, whose textures it has never seen, the embedding alone must tell which support a query resembles.
"""

from __future__ import annotations

import argparse
import math
import platform
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize
from torch.utils.data import DataLoader, Dataset

from captum_fam._files import write_all_or_nothing, write_json
from captum_fam.demo import Episode, PlantedScenes, render_scene
from captum_fam.demo import network as demo_network
from captum_fam.experiments.fitting import fit
from captum_fam.metrics import energy_proportion
from captum_fam.models import Conv4Net

BASE_CLASSES = 144  # labels 0 to 143, objects and distractors of the base split
SCALE = 16.0


class _Crowds(Dataset[tuple[Tensor, Tensor]]):
    """Scenes of two or three objects of any base classes: uint8 image, and each class's share of the objects."""

    def __init__(self, length: int, seed: int) -> None:
        self.length = length
        self.seed = seed

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        rng = np.random.default_rng((self.seed, index))
        labels = rng.choice(BASE_CLASSES, rng.integers(2, 4), replace=False).tolist()
        scene = render_scene(labels[0], labels[1:], seed=(self.seed, index, 1))
        target = torch.zeros(BASE_CLASSES)
        target[labels] = 1 / len(labels)
        return (scene.image * 255).round().byte(), target


def train(*, seed: int = 0, steps: int = 1500, scenes: int = 16_000, batch: int = 100) -> Conv4Net:
    """Trains a `Conv4Net` on base scenes.

    Args:
        seed: Seed of the scenes, the initial weights and the batches.
        steps: Optimiser steps (AdamW, one cycle to 3e-3).
        scenes: Scenes drawn once and then reused, turned and mirrored at random.
        batch: Scenes in a step.

    Returns:
        The trained network, in eval mode.
    """
    torch.manual_seed(seed)
    start = time.monotonic()
    loader = DataLoader(_Crowds(scenes, seed), batch_size=250, num_workers=torch.get_num_threads())
    images, targets = (torch.cat(parts) for parts in zip(*loader, strict=True))
    print(f"{scenes} scenes drawn in {time.monotonic() - start:.0f} s", flush=True)

    network = Conv4Net().to(memory_format=torch.channels_last)
    prototypes = nn.Parameter(normalize(torch.randn(BASE_CLASSES, 64), dim=1))
    optimizer = torch.optim.AdamW([*network.parameters(), prototypes], weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps, pct_start=0.15)

    def loss_of(_: int) -> Tensor:
        chosen = torch.randint(len(images), (batch,))
        x = torch.rot90(images[chosen], int(torch.randint(4, ())), (2, 3))
        x = x.flip(3) if torch.rand(()) < 0.5 else x
        # bfloat16 convolutions halve the time on a CPU; the similarity stays in float32.
        with torch.autocast("cpu", torch.bfloat16):
            features = network.features((x.float() / 255).contiguous(memory_format=torch.channels_last))
        embedding = features.float().mean((2, 3))
        logits = SCALE * normalize(embedding, dim=1) @ normalize(prototypes, dim=1).T
        return cross_entropy(logits, targets[chosen])

    for step, loss in enumerate(fit(range(steps), loss_of, optimizer, schedule=schedule), 1):
        if step % 50 == 0:
            print(f"step {step}/{steps}  loss {loss:.3f}  {time.monotonic() - start:.0f} s", flush=True)
    return network.eval()


@dataclass(frozen=True)
class NovelAccuracy:
    """What the network does on novel episodes; all but ``episodes`` are shares in [0, 1].

    Attributes:
        episodes: Number of 5-way 1-shot episodes, of 5 queries per class.
        accuracy: Mean accuracy over episodes.
        interval: Half-width of its 95 % interval.
        energy: Energy inside the shared object of the exact map with foil, cut at zero: mean over queries.
        energy_mean_activation: The same of the mean activation, a map that knows no support.
        object_area: The object's share of the image: the energy of a constant map.
    """

    episodes: int
    accuracy: float
    interval: float
    energy: float
    energy_mean_activation: float
    object_area: float


@torch.no_grad()
def evaluate(network: Conv4Net, *, episodes: int = 600, seed: int = 0) -> NovelAccuracy:
    """Measures 5-way 1-shot accuracy on novel classes, and whether the similarity rests on the shared object.

    Args:
        network: In eval mode.
        episodes: Number of episodes, at least two.
        seed: Seed of the episodes.

    Returns:
        Accuracy and energies.
    """
    novel = PlantedScenes("novel", seed=seed)
    rows = [_measure(network, novel.episode(query=5, seed=i)) for i in range(episodes)]
    accuracy, *energies = torch.tensor(rows).mean(0).tolist()
    deviation = torch.tensor([row[0] for row in rows]).std().item()
    return NovelAccuracy(episodes, accuracy, 1.96 * deviation / math.sqrt(episodes), *energies)


def _measure(network: Conv4Net, episode: Episode) -> list[float]:
    """Accuracy, energy of the map with foil, of the mean activation, and the object's area, over one episode."""
    support = normalize(network(episode.support_images), dim=1)
    activation = network.features(episode.query_images)
    embedding = activation.mean((2, 3))
    labels = episode.query_labels
    scores = normalize(embedding, dim=1) @ support.T
    # One shot: a class's mean normalized support is its support. The foil is the mean of the other classes'.
    foil = (support.sum(0) - support) / (len(support) - 1)
    weights = (support - foil)[labels] / embedding.norm(dim=1, keepdim=True)
    similarity_map = torch.einsum("bn,bnhw->bhw", weights, activation).clamp_min(0)
    mean_activation = activation.mean(1)
    mean_activation = mean_activation - mean_activation.amin((1, 2), keepdim=True)
    masks = torch.stack([scene.mask for scene in episode.query]).float()
    return [
        (scores.argmax(1) == labels).float().mean().item(),
        _energy_inside(similarity_map, masks),
        _energy_inside(mean_activation, masks),
        masks.mean().item(),
    ]


def _energy_inside(maps: Tensor, masks: Tensor) -> float:
    """Mean share of the positive part of maps (B, h, w) inside the masks (B, H, W); maps of zeros do not count."""
    return energy_proportion(maps, masks.bool(), energy="positive").nanmean().item()


def main(arguments: Iterable[str] | None = None) -> None:
    """Trains, measures, and writes ``conv4net.pt`` (float16 state dict) and ``conv4net.json`` (how it was made)."""
    parser = argparse.ArgumentParser(
        prog="python -m captum_fam.experiments.training.demo_network", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--scenes", type=int, default=16_000)
    parser.add_argument("--episodes", type=int, default=600)
    parser.add_argument("--out", type=Path, default=Path(demo_network.__file__).parent, help="folder of the two files")
    options = parser.parse_args(None if arguments is None else list(arguments))

    start = time.monotonic()
    network = train(seed=options.seed, steps=options.steps, scenes=options.scenes)
    minutes = (time.monotonic() - start) / 60
    state = {key: value.half() if value.is_floating_point() else value for key, value in network.state_dict().items()}
    # Measured on the rounded weights: the ones that users get.
    network.load_state_dict(state)
    report = evaluate(network, episodes=options.episodes, seed=options.seed + 1)
    print(f"novel 5-way 1-shot: {report.accuracy:.1%} ± {report.interval:.1%} over {report.episodes} episodes")
    print(
        f"energy inside the shared object: {report.energy:.3f} with foil, {report.energy_mean_activation:.3f} mean "
        f"activation, {report.object_area:.3f} constant map"
    )
    made = {
        "command": f"python -m captum_fam.experiments.training.demo_network --seed {options.seed}"
        f" --steps {options.steps} --scenes {options.scenes} --episodes {options.episodes}",
        "seed": options.seed,
        "steps": options.steps,
        "scenes": options.scenes,
        **{key: round(value, 4) if isinstance(value, float) else value for key, value in asdict(report).items()},
        "training_minutes": round(minutes, 1),
        "hardware": f"CPU ({platform.machine()}), {torch.get_num_threads()} threads",
        "torch": torch.__version__,
    }
    with write_all_or_nothing(options.out) as scratch:
        torch.save(state, scratch / "conv4net.pt")
        write_json(scratch / "conv4net.json", made)


if __name__ == "__main__":
    main()
