"""From the tensors of a layer to grids ``(B, N, *spatial)``, and the layers that have none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from captum_fam.attr._layer_run import LayerRun
from captum_fam.attr.tokens import TokenGrid, TokenGridLike, looks_channels_first, looks_channels_last


def lay_out(
    layer: nn.Module, tensor: Tensor, embedding: Tensor, model: Callable[..., Any], token_grid: TokenGridLike | None
) -> Tensor:
    """One tensor of a layer as ``(B, N, *spatial)``.

    Args:
        layer: that gave the tensor.
        tensor: as the layer gave it.
        embedding: ``(B, J)``, of the same batch.
        model: that the layer is a part of.
        token_grid: rearranges the tensor; None for channels first.

    Raises:
        ValueError: for a tensor without positions, one whose channels or batch stand elsewhere, or whole numbers.
    """
    name, shape = type(layer).__name__, tuple(tensor.shape)
    if not tensor.is_floating_point():
        raise ValueError(f"layer {name} gives {tensor.dtype}; an activation map needs floating-point numbers")
    scopes = [layer, model]
    is_last = tensor.dim() > 2 and looks_channels_last(scopes, tensor, embedding.shape[1])
    if isinstance(token_grid, TokenGrid) and tensor.dim() == 4 and looks_channels_first(scopes, tensor):
        raise ValueError(
            f"layer {name} gives {shape}, which looks channels-first already; leave token_grid out for this layer"
        )
    if token_grid is not None:
        tensor = token_grid(tensor)
    elif is_last:
        raise ValueError(
            f"layer {name} gives {shape}, which looks channels-last; pass "
            "token_grid=TokenGrid(...) to lay the tokens out as an image, or token_grid=torch.nn.Identity() if "
            "dimension 1 does hold the channels"
        )
    if tensor.dim() < 3:
        raise ValueError(
            f"layer {name} gives {shape}, which has no spatial dimension; choose a layer before the pooling"
        )
    if len(tensor) != len(embedding):
        raise ValueError(
            f"layer {name} gives {shape}, a batch of {len(tensor)} for {len(embedding)} queries: its tokens may "
            "come first (token_grid=TokenGrid(sequence_first=True)), or it may hold windows or frames: rearrange "
            "it with a token_grid of your own, or choose another layer"
        )
    return tensor


def check_batch_first(
    run: LayerRun,
    layers: Sequence[nn.Module],
    token_grid: TokenGridLike | None,
    run_alone: Callable[[nn.Module], LayerRun],
) -> None:
    """Refuse tokens whose first dimension is not the batch, where the sizes cannot tell the two apart.

    Args:
        run: of the queries.
        layers: that were run.
        token_grid: as for :func:`lay_out`.
        run_alone: runs one layer for the first query alone.

    Raises:
        ValueError: for such a layer.
    """
    batch = len(run.embedding)
    for layer, passes in zip(layers, run.passes, strict=True):
        square = any(t.dim() == 3 and t.shape[:2] == (batch, batch) for one in passes for t in one.tensors)
        knows = token_grid is not None and not isinstance(token_grid, TokenGrid)
        if not square or batch == 1 or knows or getattr(token_grid, "sequence_first", False):
            continue
        if any(len(tensor) != 1 for one in run_alone(layer).passes[0] for tensor in one.tensors):
            raise ValueError(
                f"layer {type(layer).__name__} gives ({batch}, {batch}, ...) with the tokens first; rearrange it: "
                "token_grid=TokenGrid(sequence_first=True)"
            )


def square_grid_in_words(run: LayerRun, queries: Tensor, token_grid: TokenGridLike | None) -> str | None:
    """What to warn of where tokens are laid out as a square, which those of an oblong image are unlikely to be."""
    if not isinstance(token_grid, TokenGrid) or token_grid.size is not None or queries.dim() != 4:
        return None
    is_square = queries.shape[2] == queries.shape[3]
    if is_square or not any(t.dim() == 3 for passes in run.passes for one in passes for t in one.tensors):
        return None
    height, width = queries.shape[2:]
    return (
        f"token_grid lays the tokens out as a square, but inputs are {height} x {width}: unless the model "
        "makes them square itself, pass TokenGrid(size=(h, w)), or find_layer(model, inputs).token_grid"
    )
