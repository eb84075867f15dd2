"""Maps of mosaics at several layers and for several views, each of which adds up to the score of its view."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.mosaics import DrawnMosaics
from benchmarks.networks import Network
from captum_fam import LayerSimilarityCAM, SimilarityToSupport
from captum_fam.attr.account import resample
from captum_fam.experiments import load_dataset, load_model

LAYERS = {
    "squeezenet": {"early": "features.7", "middle": "features.10"},
    "efficientnet_lite0": {"early": "blocks.3", "middle": "blocks.4"},
}
"""Layers by network and name, before the last one, which is pooled."""

SHIFT = 16
"""How far the shifted views are moved, in pixels: half a position of EfficientNet-Lite0's last layer."""
VIEWS = ("as it is", "mirrored", "moved right", "moved down", "moved both ways")


def collect(
    network: Network,
    head: Path | None,
    seed: int,
    mosaics: int,
    shared: Path,
    folder: Path,
    views: Sequence[str] = VIEWS,
) -> dict[str, Tensor]:
    """Maps of mosaics, and whether the network is right about the single images.

    Args:
        network: the network.
        head: file of a linear head; None for the pooled layer as embedding.
        seed: seed of the mosaics.
        mosaics: number of mosaics.
        shared: folder of data and weights.
        folder: keeps images and embeddings while this runs.
        views: of :data:`VIEWS`, the plain one first; alone it comes without the runner-up.

    Returns:
        Maps ``(mosaics * 4, 1, h, w)`` by ``"VIEW/LAYER"``, against the mean of the other classes; under
        ``"runner-up/LAYER"`` those of the plain view against the runner-up; ``"descriptors"``, the last layer's
        activation of each mosaic ``(mosaics, N, h, w)``; and ``"right"``, ``(mosaics * 4,)``.
    """
    model = load_model(network.model, network.weights(shared), head)
    dataset = load_dataset(str(shared / "data" / "cub50"), "novel", model)
    drawn = DrawnMosaics(model, dataset, folder, mosaics, seed)
    fast = drawn.fast
    # The backbone of a network of torchvision is its ``features``.
    names = {name: layer.removeprefix("features.") for name, layer in LAYERS[network.name].items()}
    layers = {name: fast.backbone.get_submodule(layer) for name, layer in names.items()} | {"last": fast.backbone}
    kept: dict[str, list[Tensor]] = {}
    for number in range(mosaics):
        support, mosaic = drawn.support(number), drawn.image(number)
        cells = drawn.episode(number).query.flatten()
        labels = torch.arange(len(cells))
        _, predicted = SimilarityToSupport(nn.Identity().eval(), support).predict(drawn.features.embeddings[cells])
        kept.setdefault("right", []).append(predicted == labels)
        with torch.no_grad():
            kept.setdefault("descriptors", []).append(fast.backbone(mosaic))
        for view in views:
            scores = SimilarityToSupport(fast, support, foil="others")
            for name, maps in _maps(scores, layers, seen_by(mosaic, view), labels):
                kept.setdefault(f"{view}/{name}", []).append(laid_back(maps, view, mosaic.shape[-1]))
        if len(views) > 1:
            scores = SimilarityToSupport(fast, support, foil="runner-up")
            for name, maps in _maps(scores, layers, mosaic, labels):
                kept.setdefault(f"runner-up/{name}", []).append(maps)
    return {name: torch.cat(parts) for name, parts in kept.items()}


def _maps(
    scores: SimilarityToSupport, layers: dict[str, nn.Module], mosaic: Tensor, targets: Tensor
) -> Iterator[tuple[str, Tensor]]:
    """The exact maps of one mosaic for each of its classes, layer by layer, from one run of the network."""
    cam = LayerSimilarityCAM(scores, list(layers.values()))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="the map ")
        found = cam.attribute(mosaic.expand(len(targets), -1, -1, -1), target=targets)
    for name, maps in zip(layers, found, strict=True):
        yield name, maps.detach()


def seen_by(mosaic: Tensor, view: str) -> Tensor:
    """What a view shows of a mosaic: mirrored, or moved with its border repeated.

    Args:
        mosaic: ``(1, 3, H, W)``.
        view: of :data:`VIEWS`.
    """
    if view == "mirrored":
        return mosaic.flip(-1)
    right, down = _moves(view)
    height, width = mosaic.shape[2:]
    return nn.functional.pad(mosaic, (right, 0, down, 0), mode="replicate")[..., :height, :width]


def laid_back(maps: Tensor, view: str, width: int) -> Tensor:
    """The maps of a view on the mosaic as it is; what lies on the repeated border goes to the border's positions.

    Args:
        maps: ``(B, 1, h, w)``.
        view: of :data:`VIEWS`.
        width: of the mosaic, in pixels.
    """
    if view == "mirrored":
        return maps.flip(-1)
    right, down = _moves(view)
    if not right and not down:
        return maps
    # On a grid so fine that the move is a whole number of positions.
    side = 2 * width // SHIFT
    fine = resample(maps, (side, side))
    for axis, move in ((-1, right), (-2, down)):
        steps = move * side // width
        moved = fine.narrow(axis, steps, side - steps)
        edge = torch.zeros_like(fine.narrow(axis, 0, steps))
        border = fine.narrow(axis, 0, steps).sum(axis, keepdim=True)
        fine = torch.cat([moved.narrow(axis, 0, 1) + border, moved.narrow(axis, 1, side - steps - 1), edge], axis)
    return fine


def _moves(view: str) -> tuple[int, int]:
    """How far a view is moved to the right and down, in pixels."""
    both = view == "moved both ways"
    return SHIFT * (both or view == "moved right"), SHIFT * (both or view == "moved down")
