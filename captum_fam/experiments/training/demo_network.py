"""Trains the few-shot network of the demo on planted scenes.

The command is ``python -m captum_fam.experiments.training.demo_network --seed 0``.

The network learns which base classes of `captum_fam.demo.scenes` are in a scene. The loss is that of a cosine
classifier of the base classes, whose target is spread evenly over all objects of the scene. The object and the
distractors count alike, so that the network learns no class as background, and the network never sees a mask. The
classifier is removed after the training. On the novel classes, whose textures are new to the network, only the
embedding decides which support a query resembles.
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

BASE_CLASSES = 144
"""Number of classes of the base split, with labels 0 to 143, for objects and distractors."""
SCALE = 16.0
"""Factor of the cosines in the softmax of the classifier."""


class _CrowdedScenes(Dataset[tuple[Tensor, Tensor]]):
    """Scenes with two or three objects of any base classes: the image in uint8, and the share of each class."""

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
    """Train a `Conv4Net` on base scenes.

    Args:
        seed: seed of the scenes, the initial weights and the batches. Default: 0.
        steps: steps of the optimizer, AdamW, with one cycle of the learning rate up to 3e-3. Default: 1,500.
        scenes: number of scenes, which are drawn once, and are rotated and mirrored at random in each step. Default:
            16,000.
        batch: scenes per step. Default: 100.

    Returns:
        The trained network, in eval mode.
    """
    torch.manual_seed(seed)
    start = time.monotonic()
    loader = DataLoader(_CrowdedScenes(scenes, seed), batch_size=250, num_workers=torch.get_num_threads())
    images, targets = (torch.cat(parts) for parts in zip(*loader, strict=True))
    print(f"{scenes} scenes drawn in {time.monotonic() - start:.0f} s", flush=True)

    network = Conv4Net().to(memory_format=torch.channels_last)
    prototypes = nn.Parameter(normalize(torch.randn(BASE_CLASSES, 64), dim=1))
    optimizer = torch.optim.AdamW([*network.parameters(), prototypes], weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps, pct_start=0.15)

    def loss_of(_: int) -> Tensor:
        items = torch.randint(len(images), (batch,))
        x = torch.rot90(images[items], int(torch.randint(4, ())), (2, 3))
        x = x.flip(3) if torch.rand(()) < 0.5 else x
        # Convolutions in bfloat16 halve the time on a CPU. The similarity is computed in float32.
        with torch.autocast("cpu", torch.bfloat16):
            features = network.features((x.float() / 255).contiguous(memory_format=torch.channels_last))
        embedding = features.float().mean((2, 3))
        logits = SCALE * normalize(embedding, dim=1) @ normalize(prototypes, dim=1).T
        return cross_entropy(logits, targets[items])

    for step, loss in enumerate(fit(range(steps), loss_of, optimizer, schedule=schedule), 1):
        if step % 50 == 0:
            print(f"step {step}/{steps}  loss {loss:.3f}  {time.monotonic() - start:.0f} s", flush=True)
    return network.eval()


@dataclass(frozen=True)
class NovelAccuracy:
    """Results of the network on episodes of novel classes; all but ``episodes`` are shares in [0, 1].

    Attributes:
        episodes: number of 5-way 1-shot episodes, with 5 queries per class.
        accuracy: mean accuracy over the episodes.
        interval: half the width of the 95 % interval of the accuracy.
        energy: share of the energy inside the shared object, for the positive part of the exact map with foil; mean
            over the queries.
        energy_mean_activation: share of the energy inside the shared object for the mean activation, a map that does
            not depend on the support.
        object_area: share of the area of the object, which is the share of the energy for a constant map.
    """

    episodes: int
    accuracy: float
    interval: float
    energy: float
    energy_mean_activation: float
    object_area: float


@torch.no_grad()
def measure_novel_accuracy(network: Conv4Net, *, episodes: int = 600, seed: int = 0) -> NovelAccuracy:
    """Measure the 5-way 1-shot accuracy on novel classes, and how far the similarity depends on the shared object.

    Args:
        network: network in eval mode.
        episodes: number of episodes, at least two. Default: 600.
        seed: seed of the episodes. Default: 0.

    Returns:
        Accuracy and energies.

    Example:
        >>> measure_novel_accuracy(Conv4Net().eval(), episodes=2).episodes
        2
    """
    novel = PlantedScenes("novel", seed=seed)
    rows = [_measure(network, novel.episode(query=5, seed=i)) for i in range(episodes)]
    accuracy, *energies = torch.tensor(rows).mean(0).tolist()
    deviation = torch.tensor([row[0] for row in rows]).std().item()
    return NovelAccuracy(episodes, accuracy, 1.96 * deviation / math.sqrt(episodes), *energies)


def _measure(network: Conv4Net, episode: Episode) -> list[float]:
    """Accuracy, energy of the map with foil, energy of the mean activation, and area of the object, of one episode."""
    support = normalize(network(episode.support_images), dim=1)
    activation = network.features(episode.query_images)
    embedding = activation.mean((2, 3))
    labels = episode.query_labels
    scores = normalize(embedding, dim=1) @ support.T
    # With one shot, the normalized support of a class is its mean support. The foil is the mean over the other classes.
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
    """Mean share of the positive part of maps ``(B, h, w)`` inside masks ``(B, H, W)``, without maps of zeros."""
    return energy_proportion(maps, masks.bool(), energy="positive").nanmean().item()


def main(arguments: Iterable[str] | None = None) -> None:
    """Train and measure the network, and write ``conv4net.pt`` (float16 state dict) and ``conv4net.json`` (a report).

    Args:
        arguments: the words on the command line; None for those of the process. Default: None.
    """
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
    # The accuracy is measured with the rounded weights, which users get.
    network.load_state_dict(state)
    report = measure_novel_accuracy(network, episodes=options.episodes, seed=options.seed + 1)
    print(f"novel 5-way 1-shot: {report.accuracy:.1%} ± {report.interval:.1%} over {report.episodes} episodes")
    print(
        f"energy inside the shared object: {report.energy:.3f} with foil, {report.energy_mean_activation:.3f} mean "
        f"activation, {report.object_area:.3f} constant map"
    )
    report_entries = {
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
        write_json(scratch / "conv4net.json", report_entries)


if __name__ == "__main__":
    main()
