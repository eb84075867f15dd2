"""From the tensors of a layer to grids ``(B, N, *spatial)``, with errors for layers without a grid."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from captum_fam.attr._layer_run import LayerRun
from captum_fam.attr.tokens import TokenGrid, TokenGridLike, looks_channels_first, looks_channels_last


def lay_out(
    layer: nn.Module, tensor: Tensor, embedding: Tensor, model: Callable[..., Any], token_grid: TokenGridLike | None
) -> Tensor:
    """Arrange one tensor of a layer as ``(B, N, *spatial)``.

    Args:
        layer: the layer, for the messages and its numbers of channels.
        tensor: the tensor that the layer gave.
        embedding: the embedding of the same batch, ``(B, J)``.
        model: the model of the layer.
        token_grid: rearranges the tensor; None: the tensor is channels-first already.

    Raises:
        ValueError: for a tensor of whole numbers, without positions, with another batch size than the embedding, or
            whose channels are in another dimension than expected.
    """
    name, shape = type(layer).__name__, tuple(tensor.shape)
    if not tensor.is_floating_point():
        raise ValueError(f"layer {name} gives {tensor.dtype}; an activation map needs floating-point numbers")
    # The layout is judged on the tensor of the layer, before the token grid rearranges it.
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
            f"layer {name} gives {shape}, a batch of {len(tensor)} for {len(embedding)} queries: tokens may be the "
            "first dimension (token_grid=TokenGrid(sequence_first=True)), or the batch may be of windows or frames: "
            "rearrange the tensor with a token_grid of your own, or choose another layer"
        )
    return tensor


def check_batch_first(
    run: LayerRun,
    layers: Sequence[nn.Module],
    token_grid: TokenGridLike | None,
    run_alone: Callable[[nn.Module], LayerRun],
) -> None:
    """Refuse tokens ``(T, B, N)`` where T = B, so that the shape does not show which dimension is the batch.

    Such a layer runs once more for the first query alone: then the batch dimension has the size 1.

    Args:
        run: the forward pass of the queries.
        layers: the layers of the run.
        token_grid: the grid of :func:`lay_out`.
        run_alone: runs one layer for the first query.

    Raises:
        ValueError: for a layer whose first dimension is not the batch.
    """
    batch = len(run.embedding)
    for layer, passes in zip(layers, run.passes, strict=True):
        tensors = [tensor for pass_ in passes for tensor in pass_.tensors]
        is_ambiguous = batch > 1 and any(tensor.dim() == 3 and tensor.shape[:2] == (batch, batch) for tensor in tensors)
        # The user's own function, or sequence_first, says where the batch is.
        is_own_grid = token_grid is not None and not isinstance(token_grid, TokenGrid)
        if not is_ambiguous or is_own_grid or getattr(token_grid, "sequence_first", False):
            continue
        if any(len(tensor) != 1 for pass_ in run_alone(layer).passes[0] for tensor in pass_.tensors):
            raise ValueError(
                f"layer {type(layer).__name__} gives ({batch}, {batch}, ...) with the tokens first; rearrange it: "
                "token_grid=TokenGrid(sequence_first=True)"
            )


def square_grid_in_words(run: LayerRun, queries: Tensor, token_grid: TokenGridLike | None) -> str | None:
    """The text of a warning where the tokens of an oblong image are laid out as a square; else None."""
    if not isinstance(token_grid, TokenGrid) or token_grid.size is not None or queries.dim() != 4:
        return None
    is_square = queries.shape[2] == queries.shape[3]
    has_tokens = any(tensor.dim() == 3 for passes in run.passes for pass_ in passes for tensor in pass_.tensors)
    if is_square or not has_tokens:
        return None
    height, width = queries.shape[2:]
    return (
        f"token_grid lays the tokens out as a square, but inputs are {height} x {width}: unless the model resizes "
        "inputs to a square, pass TokenGrid(size=(h, w)), or find_layer(model, inputs).token_grid"
    )
