"""Cuts an embedding model into two parts at the layer to explain."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from captum_fam._warnings import warn_user
from captum_fam.attr.layer_hooks import observe_layers
from captum_fam.attr.layer_measurement import Measurement
from captum_fam.attr.tokens import TokenGrid, TokenGridLike
from captum_fam.experiments.replaced_cut import cut_by_replacing
from captum_fam.experiments.traced_cut import BypassError, CutError, cut_by_tracing
from captum_fam.experiments.two_part_model import AsEmbedding, TwoPartModel, probe_images
from captum_fam.functional import unit
from captum_fam.models import EmbeddingModel


def split_model(net: EmbeddingModel, layer: str | None = None) -> TwoPartModel:
    """Cut an embedding model at its layer to explain, or at another layer.

    Every model can be cut: a transformer at its tokens, which are laid out by a token grid. Where the embedding is a
    pooling of the layer, the tail has the pooling and the head of the model; else everything behind the layer becomes
    the rest of the tail. For the cosine similarity a normalization behind a pooling is left out, because the cosine
    does not depend on it.

    Args:
        net: result of :func:`~captum_fam.models.create_model`.
        layer: dotted name of a module in ``net.model`` that runs once and gives feature maps ``(B, N, h, w)`` or
            tokens. Everything behind the module must follow from its output. None for the layer of the model; if
            something goes around this layer, the model is cut at the next module before it that gets everything, and a
            warning names the module. Default: None.

    Returns:
        The model in two parts.

    Raises:
        ValueError: if the embedding depends on anything else than the output of the layer, or if the model cannot be
            cut at the layer; the message names the reason and a remedy.

    Example:
        >>> model = split_model(create_model("squeezenet1_0"), "features.5")
        >>> activation = model.backbone(torch.rand(2, 3, 224, 224))
        >>> activation.shape, model.tail.rest(activation).shape
        (torch.Size([2, 256, 54, 54]), torch.Size([2, 512, 13, 13]))
    """
    probe = probe_images(net.size, len(net.mean))
    is_pooled = net.pooling is not None and net.token_grid is None
    parts, pooling, head = None, net.pooling, net.head
    if is_pooled and net.layer == "features" and layer in (None, "features"):
        # The first module of the networks of this package; they need no trace.
        parts = Cut(net.layer_module)
    elif is_pooled:
        parts = _cut_before_pooling(net, layer or net.layer, probe)
    if parts is None:
        pooling, head = AsEmbedding(), None
        parts = _cut_anywhere(net, layer, probe)
    model = TwoPartModel(
        parts.first,
        pooling or AsEmbedding(),
        head,
        size=net.size,
        mean=net.mean,
        std=net.std,
        interpolation=net.interpolation,
        similarity=net.similarity,
        resize=net.resize,
        evaluation_crop=net.evaluation_crop,
        rest=parts.rest,
        token_grid=parts.token_grid,
        any_size=net.any_size and (parts.token_grid is None or _takes_larger(net.model, probe)),
    ).eval()
    with torch.inference_mode():
        expected, embedding = AsEmbedding()(net.model(probe)), model(probe)
    if net.similarity == "cosine":
        expected, embedding = unit(expected), unit(embedding)
    if not _is_close(embedding, expected):
        raise ValueError(
            f"model {net.name}: the embedding cannot be computed from the output of layer {layer or net.layer!r}"
        )
    _note_grids(model, probe)
    return model


def trunk_of(net: EmbeddingModel, pooling: nn.Module | None = None) -> tuple[nn.Module, nn.Module]:
    """The part of an embedding model before its head, as a network to train a new head on.

    Args:
        net: result of :func:`~captum_fam.models.create_model`.
        pooling: pooling in place of the pooling of the model. Default: None.

    Returns:
        Two modules that share the weights of the model: from images to the input of the pooling, and the pooling. Where
        the embedding is no pooling of a layer, the first module is the whole model.

    Raises:
        ValueError: for a pooling where the embedding is no pooling of a layer, or a model that cannot be cut.

    Example:
        >>> features, pooling = trunk_of(create_model("conv4net"))
        >>> pooling(features(torch.rand(2, 3, 84, 84))).shape
        torch.Size([2, 64])
    """
    parts = split_model(net)
    if not isinstance(parts.tail.pooling, AsEmbedding):
        return parts.backbone, pooling or parts.tail.pooling
    if pooling is not None:
        raise ValueError(f"pooling: the embedding of {net.name} is no pooling of layer {net.layer!r}; leave it out")
    return net.model, parts.tail.pooling


def cut_earlier(model: TwoPartModel, layer: str, name: str) -> None:
    """Move a part of the backbone of a model to its tail.

    Args:
        model: model, which changes in place.
        layer: dotted name of a module in the backbone; the backbone ends behind this module afterwards.
        name: name of the model, for messages.

    Raises:
        ValueError: if the model cannot be cut there.
    """
    probe = probe_images(model.size, len(model.mean))
    parts = cut(model.backbone, layer, probe, name, whole=model)
    assert parts.rest is not None
    with torch.no_grad():
        if not _is_close(parts.rest(parts.first(probe).clone()), model.backbone(probe)):
            raise ValueError(f"model {name}: the activation cannot be computed from the output of layer {layer!r}")
    model.backbone = parts.first
    model.tail.rest = parts.rest if model.tail.rest is None else nn.Sequential(parts.rest, model.tail.rest)
    model.tail.token_grids = {} if parts.token_grid is None else {"activation": parts.token_grid}
    _note_grids(model, probe)


@dataclass(frozen=True)
class Cut:
    """A model that is cut behind a layer.

    Attributes:
        first: module from images to the output of the layer.
        rest: module from the output of the layer on; None if nothing is left. Default: None.
        token_grid: layout of the tokens of the layer; None for feature maps ``(B, N, h, w)``. Default: None.
    """

    first: nn.Module
    rest: nn.Module | None = None
    token_grid: TokenGridLike | None = None


def cut(
    model: nn.Module,
    layer: str,
    probe: Tensor,
    name: str,
    *,
    end: str | None = None,
    whole: nn.Module | None = None,
    token_grid: TokenGridLike | None = None,
) -> Cut:
    """Cut a model behind a layer: by a trace of its code, or where that does not work, by replacing the output.

    Args:
        model: module that takes one tensor.
        layer: dotted name of the module behind which the model is cut.
        probe: two inputs of the model, ``(2, C, H, W)``.
        name: name of the model, for messages.
        end: dotted name of the module with whose output the second part ends, which needs a trace; None for the output
            of the model. Default: None.
        whole: embedding model that holds ``model``, in which the layer is measured; None if ``model`` is the embedding
            model. Default: None.
        token_grid: layout of the tokens of the layer. Default: None, it is measured.

    Returns:
        The two parts. Tokens ``(T, B, N)`` become ``(B, T, N)`` between the parts.

    Raises:
        CutError: (a ``ValueError``) if the model cannot be cut at the layer; the message names the reason and a remedy.
    """

    def refuse(reason: object, kind: type[CutError] = CutError) -> CutError:
        return kind(f"model {name} cannot be cut at layer {layer!r}: {reason}")

    modules = dict(model.named_modules())
    if not layer or layer not in modules:
        close = difflib.get_close_matches(layer, modules) or [child for child, _ in model.named_children()]
        raise refuse(f"it is no module of the model; there are {', '.join(close)}")
    (outputs,) = observe_layers(model, [modules[layer]], (probe,))
    if len(outputs) != 1:
        raise refuse(f"it runs {len(outputs)} times; choose a layer that runs once")
    (output,) = outputs
    if token_grid is None:
        layout = next(
            (one.layout for one in Measurement(whole or model, probe).outputs if one.module is modules[layer]), None
        )
        if layout is None:
            given = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise refuse(f"it gives {given}, which has no positions of the image; choose feature maps or tokens")
        token_grid = layout.token_grid
    sequence_first = isinstance(token_grid, TokenGrid) and token_grid.sequence_first
    try:
        if not sequence_first and isinstance(output, Tensor):
            return Cut(*cut_by_tracing(model, layer, end), token_grid)
    except CutError as error:
        if end is not None:
            raise refuse(error, type(error)) from error
    try:
        first, rest = cut_by_replacing(model, layer, probe, sequence_first)
    except BypassError as error:
        raise refuse(f"{error}, as inside a block with a shortcut; choose the whole block", BypassError) from error
    return Cut(first, rest, replace(token_grid, sequence_first=False) if sequence_first else token_grid)  # type: ignore[type-var]


def _cut_before_pooling(net: EmbeddingModel, layer: str, probe: Tensor) -> Cut | None:
    """Cut at the pooled layer, or between another layer and the pooled one; None if the model is not traced so far."""
    if layer == net.layer:
        return Cut(cut(net.model, layer, probe, net.name).first)
    try:
        return cut(net.model, layer, probe, net.name, end=net.layer)
    except CutError:
        return None


def _cut_anywhere(net: EmbeddingModel, layer: str | None, probe: Tensor) -> Cut:
    """Cut at a layer, with everything behind it as the rest; at an earlier module if none is named."""
    name = layer or net.layer
    grid = net.token_grid if layer in (None, net.layer) else None
    try:
        return cut(net.model, name, probe, net.name, token_grid=grid)
    except BypassError:
        if layer is not None:
            raise
        for earlier, earlier_grid in _earlier_layers(net.model, name, probe):
            try:
                parts = cut(net.model, earlier, probe, net.name, token_grid=earlier_grid)
            except CutError:
                continue
            warn_user(
                f"model {net.name}: a part of the image goes around layer {name!r}, and the model is cut at "
                f"{earlier!r} instead; --layer (layer= in Python) names another module",
                3,
            )
            return parts
        raise


def _earlier_layers(model: nn.Module, layer: str, probe: Tensor) -> Iterator[tuple[str, TokenGridLike | None]]:
    """Modules around a layer, the innermost first, then modules that finish before it, the last first."""
    found = Measurement(model, probe).outputs
    names = [candidate.name for candidate in found]
    around = [candidate for candidate in found if layer.startswith(f"{candidate.name}.")]
    before = found[: names.index(layer)] if layer in names else []
    for candidate in (*sorted(around, key=lambda one: -len(one.name)), *reversed(before)):
        yield candidate.name, candidate.layout.token_grid


def _takes_larger(model: nn.Module, probe: Tensor) -> bool:
    """Whether a model of tokens takes images of twice the size: many have a position embedding of one size."""
    try:
        with torch.no_grad():
            model(nn.functional.interpolate(probe[:1], scale_factor=2.0))
    except Exception:  # the code of any model
        return False
    return True


def _note_grids(model: TwoPartModel, probe: Tensor) -> None:
    """Measure the token grids of the modules behind the cut, which methods can explain too."""
    names = {module: name for name, module in model.tail.named_modules()}
    for candidate in Measurement(model, probe).outputs:
        if candidate.module in names and candidate.layout.token_grid is not None:
            model.tail.token_grids.setdefault(names[candidate.module], candidate.layout.token_grid)


def _is_close(result: Tensor, expected: Tensor) -> bool:
    return result.shape == expected.shape and torch.allclose(result, expected, rtol=1e-3, atol=1e-5)
