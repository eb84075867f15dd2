"""The blocks of a transformer, found by their outputs, and the names of these layers."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass

from torch import nn

from captum_fam.attr.layer_measurement import Measurement
from captum_fam.experiments import TwoPartModel
from captum_fam.experiments.two_part_model import probe_images
from captum_fam.models import EmbeddingModel


@dataclass(frozen=True)
class Layers:
    """The layers of a transformer that the tables compare, by their names in the network.

    Attributes:
        first: what gives the input of the first block.
        blocks: the blocks, in order.
    """

    first: str
    blocks: tuple[str, ...]


def layers_of(net: EmbeddingModel) -> Layers:
    """Find the blocks of a transformer, and the module that gives the input of the first.

    The blocks are the most siblings of one class that give tokens of one number; the module is the last to give as many
    tokens before any of their parts runs.

    Raises:
        ValueError: for a model without such blocks.
    """
    outputs = Measurement(net.model, probe_images(net.size, len(net.mean))).outputs
    tokens = [one for one in outputs if one.layout.token_grid is not None and len(one.layout.positions) == 1]
    siblings: dict[tuple[str, type, tuple[int, ...]], list[str]] = defaultdict(list)
    for one in tokens:
        parent, _, name = one.name.rpartition(".")
        if re.search(r"\d+$", name) and next(one.module.children(), None) is not None:
            siblings[parent, type(one.module), one.layout.positions].append(one.name)
    (_, _, positions), blocks = max(siblings.items(), key=lambda item: len(item[1]), default=(("", nn.Module, ()), []))
    if not blocks:
        raise ValueError(f"model {net.name}: no blocks that give tokens were found; name a ViT")
    before: list[str] = []
    for one in outputs:
        if one.name.startswith(f"{blocks[0]}.") or one.name == blocks[0]:
            break
        if one.layout.positions == positions and one.layout.token_grid is not None:
            before.append(one.name)
    if not before:
        raise ValueError(f"model {net.name}: no module gives the {positions[0]} tokens that enter {blocks[0]}")
    return Layers(before[-1], tuple(blocks))


def names_in_tail(model: TwoPartModel, layers: Layers) -> dict[str, str]:
    """The names of the layers in the tail of the model, which is cut at the input of the first block."""
    known = [name for name, _ in model.tail.named_modules()]
    names = {layer: next(name for name in known if name.endswith(f".{layer}")) for layer in layers.blocks}
    return {layers.first: "activation", **names}


def in_words(layer: str, layers: Layers) -> str:
    """The layer in words."""
    if layer == layers.first:
        return f"input of the first block, `{layer}`"
    return f"behind block {layers.blocks.index(layer)}, `{layer}`"
