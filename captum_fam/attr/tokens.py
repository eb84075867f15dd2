"""Laying the tokens of a transformer out as an image."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

TokenGridLike = Callable[[Tensor], Tensor]
"""Rearranges the tensors of a layer into ``(B, N, *spatial)``, as :class:`TokenGrid` does."""


@dataclass(frozen=True)
class TokenGrid:
    """Turns the tokens of ViT and Swin models into a channels-first grid.

    ``(B, T, N)`` loses its class token and registers and becomes ``(B, N, h, w)``; ``(B, h, w, N)`` becomes
    ``(B, N, h, w)``. Any function that only selects and rearranges can stand in its place.
    :func:`~captum_fam.find_layer` measures the grid of a model.

    Where the embedding is the class token, the class token takes the score over from the patches, block by block. The
    patches explain most of it at the input of the first block, as below, and nothing behind the last attention:
    ``coverage`` and ``shares`` of :class:`~captum_fam.LayerSimilarityCAM` say how much, at any layer.

    Args:
        size: h and w of the grid of patches; None for a square one.
        prefix_tokens: tokens before the patches: the class token and any registers.
        class_token: index among all tokens of a class token that does not stand before the patches, as in the middle
            (Vision Mamba) or at the end; None: there is none.
        registers: how many of the tokens that are left out are registers, the last of them; None: all but the first.
        sequence_first: tokens come as ``(T, B, N)``, as in the blocks of OpenAI's CLIP.

    Example:
        >>> vit = torchvision.models.vit_b_32().eval()
        >>> vit.heads = torch.nn.Identity()
        >>> fam = LayerFAM(vit, vit.encoder.dropout, token_grid=TokenGrid())
        >>> fam.attribute(torch.rand(2, 3, 224, 224), support=torch.rand(5, 3, 224, 224)).shape
        torch.Size([2, 1, 7, 7])
    """

    size: tuple[int, int] | None = None
    prefix_tokens: int = 1
    class_token: int | None = None
    registers: int | None = None
    sequence_first: bool = False

    def __call__(self, tokens: Tensor) -> Tensor:
        """Rearrange ``(B, T, N)``, ``(T, B, N)`` or ``(B, h, w, N)`` into ``(B, N, h, w)``.

        Raises:
            ValueError: if the patches do not fill the grid.
        """
        if tokens.dim() == 4:
            return tokens.permute(0, 3, 1, 2)
        if tokens.dim() != 3:
            raise ValueError(f"token_grid: expected tokens (B, T, N) or (B, h, w, N), got {tuple(tokens.shape)}")
        if self.sequence_first:
            tokens = tokens.transpose(0, 1)
        total, index = tokens.shape[1], self.class_token
        if index is not None and not self.prefix_tokens <= index < total:
            raise ValueError(
                f"token_grid: class_token={index} is none of {total} tokens behind the {self.prefix_tokens} prefix "
                "tokens; one before the patches belongs to prefix_tokens"
            )
        if index is not None:
            tokens = torch.cat([tokens[:, :index], tokens[:, index + 1 :]], 1)
        count = tokens.shape[1] - self.prefix_tokens
        side = math.isqrt(max(count, 0))
        height, width = self.size or (side, side)
        if count < 1 or height * width != count:
            beside = "" if index is None else " and a class token"
            raise ValueError(
                f"token_grid: {total} tokens minus {self.prefix_tokens} prefix tokens{beside} do not fill a grid of "
                f"{height} x {width}; pass TokenGrid(size=(h, w), prefix_tokens=...)"
            )
        return tokens[:, self.prefix_tokens :].transpose(1, 2).unflatten(2, (height, width))


@dataclass(frozen=True)
class TokenHints:
    """What the parameters of a model say about its tokens: ``cls_token``, ``reg_token``, ``query``, ...

    Attributes:
        class_tokens: class tokens, a distillation token included.
        registers: registers.
        queries: numbers of learned queries, which stand for no place in the image.
    """

    class_tokens: int = 0
    registers: int = 0
    queries: frozenset[int] = frozenset()

    @classmethod
    def of(cls, model: nn.Module) -> TokenHints:
        """Read the names and sizes of the parameters."""
        class_tokens: dict[str, int] = {}
        registers: dict[str, int] = {}
        queries: set[int] = set()
        for path, parameter in model.named_parameters():
            name = path.rpartition(".")[2].lower()
            count = parameter.shape[-2] if parameter.dim() > 1 else 1
            if any(word in name for word in ("query", "queries", "latent", "probe")):
                queries.add(count)
            elif name.endswith(("token", "tokens", "class_embedding")):
                if any(word in name for word in ("cls", "class", "dist")):
                    class_tokens[name] = count
                elif names_registers(name):
                    registers[name] = count
        return cls(sum(class_tokens.values()), sum(registers.values()), frozenset(queries))


def names_registers(path: str) -> bool:
    """Whether a parameter holds registers and no class token, by the last part of its dotted name.

    Example:
        >>> names_registers("encoder.reg_token"), names_registers("regions.cls_token")
        (True, False)
    """
    name = path.rpartition(".")[2].lower()
    return any(word in name for word in ("reg", "storage"))


def measure_token_grid(
    count: int, image: Sequence[int], constant: Sequence[int] = (), hints: TokenHints | None = None
) -> TokenGrid | None:
    """The grid of patches among ``count`` tokens: as high and wide as the image, up to one row or column.

    Tokens that are the same for every image are no patches. Without any it may be that they were mixed with the others
    before they were seen: then it is those that the hints name, or none, whichever leaves a grid of the nearest aspect,
    and at last the fewest that leave one of the image's very aspect.

    Args:
        count: T.
        image: H and W.
        constant: indices of the tokens that do not depend on the image.
        hints: what the model's parameters say; None: nothing.

    Returns:
        The grid, of ``size=None`` if it is square; None if there is none.

    Example:
        >>> measure_token_grid(25, (64, 96), constant=[0])
        TokenGrid(size=(4, 6), prefix_tokens=1, class_token=None, registers=None, sequence_first=False)
    """
    hints = hints or TokenHints()
    if count in hints.queries:
        return None
    measured = tuple(constant)
    if measured and (measured == tuple(range(len(measured))) or len(measured) == 1):
        size = _grid_like(image, count - len(measured))
        return None if size is None else _grid_without(measured, size, hints)
    found = []
    for prefix in (0, hints.class_tokens + hints.registers, hints.class_tokens, hints.registers):
        size = _grid_like(image, count - prefix)
        if size is not None:
            found.append((prefix, size))
    if not found:
        sizes = ((extra, _grid_like(image, count - extra)) for extra in range(1, count // 2))
        found = [(extra, size) for extra, size in sizes if size is not None and not _stretch(size, image)][:1]
    if not found:
        return None
    prefix, size = min(found, key=lambda pair: _stretch(pair[1], image))
    return _grid_without(tuple(range(prefix)), size, hints)


def _grid_without(left_out: tuple[int, ...], size: tuple[int, int], hints: TokenHints) -> TokenGrid:
    is_prefix = left_out == tuple(range(len(left_out)))
    known = hints.registers if hints.registers + hints.class_tokens == len(left_out) > 0 else None
    return TokenGrid(
        size=None if size[0] == size[1] else size,
        prefix_tokens=len(left_out) if is_prefix else 0,
        class_token=None if is_prefix else left_out[0],
        registers=None if known == len(left_out) - 1 else known,
    )


def _grid_like(image: Sequence[int], count: int) -> tuple[int, int] | None:
    """H and w with h w = count > 1 and the aspect of the image, or the nearest that it has up to one row or column."""
    sizes = ((height, count // height) for height in range(1, count + 1) if count % height == 0)
    like = [size for size in sizes if count > 1 and fits_image(size, image)]
    return min(like, key=lambda size: _stretch(size, image), default=None)


def _stretch(grid: Sequence[int], image: Sequence[int]) -> float:
    """How far the aspect of a grid is from that of the image; zero for the same."""
    wide, high = grid[1] * image[0], grid[0] * image[1]
    return abs(math.log(wide / high)) if wide != high else 0.0


def fits_image(grid: Sequence[int], image: Sequence[int]) -> bool:
    """Whether steps of the same length in every direction make this grid of the image, up to one position."""
    least = max((side - 1) / length for side, length in zip(grid, image, strict=True))
    most = min((side + 1) / length for side, length in zip(grid, image, strict=True))
    return least < most


def looks_channels_last(scopes: Sequence[object], tensor: Tensor, n_features: int) -> bool:
    """Whether the channels of a layer's tensor seem to stand in its last dimension.

    The sizes that modules work on decide: those of the first scope that has any, the layer, then its model. Without
    them the embedding decides, whose length is likelier to be repeated by the channels than by a row of the image.
    """
    first, last = tensor.shape[1], tensor.shape[-1]
    for scope in scopes:
        channels_last, channels_first = _channel_sizes(scope) if isinstance(scope, nn.Module) else (set(), set())
        if channels_last or channels_first:
            return last in channels_last and first not in channels_first
    return last == n_features != first


def looks_channels_first(scopes: Sequence[object], tensor: Tensor) -> bool:
    """Whether the channels of ``(B, N, h, w)`` stand where TokenGrid does not look for them.

    True where dimension 1 has a size that modules of the scopes work on, and the last dimension has none.
    """
    sizes = [size for scope in scopes if isinstance(scope, nn.Module) for size in _channel_sizes(scope)]
    known: set[int] = set().union(*sizes)
    return tensor.shape[1] in known and tensor.shape[-1] not in known


def _channel_sizes(scope: nn.Module) -> tuple[set[int], set[int]]:
    channels_last, channels_first = set(), set()
    found = [scope]
    for module in found:
        found.extend(module.children())
        if isinstance(module, nn.Linear):
            channels_last.add(module.out_features)
        elif isinstance(module, nn.LayerNorm) and len(module.normalized_shape) == 1:
            channels_last.add(module.normalized_shape[0])
        elif isinstance(module, nn.MultiheadAttention):
            channels_last.add(module.embed_dim)
        elif isinstance(module, nn.modules.conv._ConvNd):
            channels_first.add(module.out_channels)
        elif isinstance(module, nn.modules.batchnorm._BatchNorm):
            channels_first.add(module.num_features)
        elif isinstance(module, nn.GroupNorm):
            channels_first.add(module.num_channels)
    return channels_last, channels_first
