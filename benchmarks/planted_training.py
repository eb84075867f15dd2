"""Two small networks and their training on planted scenes, within a budget of wall-clock time.

A class-token ViT and a convolution net with LayerNorm, both of torchvision's own blocks, see 88 x 88 pixels and look
at 11 x 11 positions. A cosine classifier over the base classes, its target spread evenly over all objects of the
scene, trains them; no mask is ever shown to them. The classifier is then dropped.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy, normalize
from torch.utils.data import DataLoader, Dataset
from torchvision.models.convnext import CNBlockConfig, ConvNeXt
from torchvision.models.vision_transformer import ConvStemConfig, VisionTransformer
from torchvision.ops import Conv2dNormActivation

from benchmarks.measure import machine
from captum_fam.demo import PlantedScenes

SIZE, GRID, WIDTH, DEPTH = 88, 11, 128, 5
"""Pixels of a side, positions of a side, channels, and the blocks of the ViT."""
SCALE, LEARNING_RATE, WEIGHT_DECAY, WARM_UP = 16.0, 1e-3, 0.05, 0.1
NOVEL_SEED = 1


def vit() -> VisionTransformer:
    """A convolutional stem, 121 patches and a class token of width 128, five pre-norm blocks: ``(B, 128)``.

    Kernels of four with a stride of two keep patch i in the middle of its eight pixels.
    """
    stem = [ConvStemConfig(channels, kernel_size=4, stride=2) for channels in (32, 64, WIDTH)]
    net = VisionTransformer(SIZE, SIZE // GRID, DEPTH, 4, WIDTH, 2 * WIDTH, conv_stem_configs=stem)
    net.heads = nn.Identity()
    return net


def convnet() -> ConvNeXt:
    """A convolutional stem, a ConvNeXt block at 22 x 22 and two at 11 x 11 positions, pooling, LayerNorm: ``(B, 128)``.

    ConvNeXt's own stem, patches of four pixels and a LayerNorm, is not past chance after hundreds of steps here; the
    ViT's, overlapping and with batch norms, is.
    """
    net = ConvNeXt([CNBlockConfig(64, WIDTH, 1), CNBlockConfig(WIDTH, None, 2)], layer_scale=1.0)
    net.features[0] = nn.Sequential(*(Conv2dNormActivation(*channels, 4, 2, 1) for channels in ((3, 32), (32, 64))))
    net.classifier[2] = nn.Identity()
    return net


NETS: dict[str, Callable[[], nn.Module]] = {"vit": vit, "convnet": convnet}


def prepared(images: Tensor) -> Tensor:
    """RGB in [0, 1] as the networks take it: with a mean near zero."""
    return (images - 0.5) / 0.25


class _BaseScenes(Dataset[tuple[Tensor, Tensor]]):
    """uint8 image, and each class's share of the objects of the scene, distractors among them."""

    def __init__(self, length: int, seed: int) -> None:
        self.scenes = PlantedScenes("base", length=length, size=SIZE, seed=seed)
        self.n_classes = max(*self.scenes.classes, *self.scenes.distractor_classes) + 1

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        scene = self.scenes.scene(index)
        labels = [scene.label, *scene.distractor_labels]
        target = torch.zeros(self.n_classes)
        target[labels] = 1 / len(labels)
        return (scene.image * 255).round().byte(), target


class NovelEpisodes(Dataset[tuple[Tensor, Tensor, Tensor, Tensor]]):
    """5-way 1-shot episodes of novel classes, 5 queries of each: supports, queries, labels, object masks."""

    def __init__(self, length: int) -> None:
        self.scenes = PlantedScenes("novel", size=SIZE, seed=NOVEL_SEED)
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        episode = self.scenes.episode(query=5, seed=index)
        masks = torch.stack([scene.mask for scene in episode.query])
        return prepared(episode.support_images), prepared(episode.query_images), episode.query_labels, masks


def drawn(dataset: Dataset[tuple[Tensor, ...]], batch_size: int | None) -> Iterator[tuple[Tensor, ...]]:
    """Batches, or single items with None, drawn by all processors."""
    return iter(DataLoader(dataset, batch_size=batch_size, num_workers=len(os.sched_getaffinity(0))))


def base_scenes(length: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images ``(length, 3, 88, 88)`` uint8 and shares of the objects ``(length, 144)``."""
    dataset = _BaseScenes(length, seed)
    images = torch.empty(length, 3, SIZE, SIZE, dtype=torch.uint8)
    targets = torch.empty(length, dataset.n_classes)
    start = 0
    for some, shares in drawn(dataset, 100):
        images[start : start + len(some)], targets[start : start + len(some)] = some, shares
        start += len(some)
    return images, targets


def train(
    name: str, images: Tensor, targets: Tensor, minutes: float, batch: int, seed: int = 0
) -> tuple[nn.Module, int]:
    """Train one network until its minutes are over; the learning rate follows the clock.

    Args:
        name: of `NETS`.
        images: ``(n, 3, 88, 88)`` uint8; their device trains.
        targets: ``(n, classes)``, each row sums to one.
        minutes: of wall-clock time.
        batch: scenes per step.
        seed: of the initial weights and of the batches.

    Returns:
        The network, in eval mode, and how many steps there were.
    """
    torch.manual_seed(seed)
    torch.set_float32_matmul_precision("high")
    device = images.device.type
    net = NETS[name]().to(device).to(memory_format=torch.channels_last)
    prototypes = nn.Parameter(normalize(torch.randn(targets.shape[1], WIDTH), dim=1).to(device))
    optimizer = torch.optim.AdamW([*net.parameters(), prototypes], weight_decay=WEIGHT_DECAY)
    start, step, shown = time.monotonic(), 0, 0.0
    while (done := (time.monotonic() - start) / (60 * minutes)) < 1:
        rate = min(done / WARM_UP, 0.5 + 0.5 * math.cos(math.pi * (done - WARM_UP) / (1 - WARM_UP)))
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * rate
        chosen = torch.randint(len(images), (batch,)).to(device)
        x = torch.rot90(images[chosen], int(torch.randint(4, ())), (2, 3))
        x = x.flip(3) if torch.rand(()) < 0.5 else x
        x = prepared(x.float() / 255).contiguous(memory_format=torch.channels_last)
        with ExitStack() as faster:
            if device == "cpu":
                # bfloat16 halves the time on a CPU, but for the fused attention, which takes longer.
                faster.enter_context(torch.autocast(device, torch.bfloat16))
                faster.enter_context(sdpa_kernel(SDPBackend.MATH))
            embedding = net(x)
        logits = SCALE * normalize(embedding.float(), dim=1) @ normalize(prototypes, dim=1).T
        loss = cross_entropy(logits, targets[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        step += 1
        if done >= shown:
            print(f"{name}: step {step}, {done:.0%} of {minutes:g} minutes, loss {loss:.3f}", flush=True)
            shown += 0.05
    return net.eval(), step


@torch.no_grad()
def novel_accuracy(net: nn.Module, episodes: list[tuple[Tensor, ...]]) -> tuple[float, float]:
    """Accuracy by the cosine to one support per class, mean over episodes, and the half-width of its 95 % interval."""
    device = next(net.parameters()).device
    right = []
    for support, queries, labels, _ in episodes:
        scores = normalize(net(queries.to(device)), dim=1) @ normalize(net(support.to(device)), dim=1).T
        right.append((scores.argmax(1).cpu() == labels).float().mean())
    shares = torch.stack(right)
    return float(shares.mean()), float(1.96 * shares.std(correction=0) / len(shares) ** 0.5)


@dataclass(frozen=True)
class Trained:
    """How a network was made, and what it reached on novel 5-way 1-shot episodes."""

    minutes: float
    steps: int
    batch: int
    scenes: int
    seed: int
    accuracy: float
    interval: float
    episodes: int
    hardware: str


def train_and_save(
    minutes: dict[str, float], out: Path, device: str, scenes: int, batch: int, episodes: int, seed: int
) -> None:
    """Writes ``NAME.pt`` (a state dict) and ``NAME.json`` (`Trained`) for every name of ``minutes``."""
    hardware = machine() if device == "cpu" else f"{torch.cuda.get_device_name()}; {machine()}"
    print(f"device {device}: {hardware}", flush=True)
    start = time.monotonic()
    images, targets = base_scenes(scenes, seed)
    novel = list(drawn(NovelEpisodes(episodes), None))
    print(f"{scenes} scenes and {episodes} episodes drawn in {time.monotonic() - start:.0f} s", flush=True)
    images, targets = images.to(device), targets.to(device)
    out.mkdir(parents=True, exist_ok=True)
    for name, budget in minutes.items():
        net, steps = train(name, images, targets, budget, batch, seed)
        made = Trained(budget, steps, batch, scenes, seed, *novel_accuracy(net, novel), episodes, hardware)
        torch.save(net.cpu().state_dict(), out / f"{name}.pt")
        (out / f"{name}.json").write_text(json.dumps(asdict(made), indent=2) + "\n")
        print(
            f"{name}: {steps} steps of {batch} scenes; novel 5-way 1-shot {made.accuracy:.1%} ± {made.interval:.1%} "
            f"over {episodes} episodes",
            flush=True,
        )


def load(name: str, out: Path) -> tuple[nn.Module, Trained]:
    """A trained network, in eval mode on the CPU, and how it was made."""
    net = NETS[name]()
    net.load_state_dict(torch.load(out / f"{name}.pt", map_location="cpu", weights_only=True))
    return net.eval(), Trained(**json.loads((out / f"{name}.json").read_text()))
