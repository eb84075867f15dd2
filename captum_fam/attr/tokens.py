"""Arranging the tokens of a transformer as a grid over the image."""

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
    """Turns the tokens of ViT and Swin models into a channels-first grid ``(B, N, h, w)``.

    From tokens ``(B, T, N)`` the class token and the registers are removed. Tokens ``(B, h, w, N)`` are only permuted.
    Every function that only selects and rearranges elements can take the place of a TokenGrid.
    :func:`~captum_fam.find_layer` measures the grid of a model.

    Where the embedding is the class token, the class token takes the score over from the patches, block by block. At
    the input of the first block, the layer of the example below, the patches explain most of the score; behind the last
    attention they explain nothing. ``coverage`` and ``shares`` of :class:`~captum_fam.LayerSimilarityCAM` give these
    numbers for any layer.

    Args:
        size: h and w of the grid of patches. Default: None, a square grid.
        prefix_tokens: number of tokens before the patches: the class token and registers. Default: 1.
        class_token: index, among all tokens, of a class token that is not before the patches: in the middle (Vision
            Mamba) or at the end. Default: None, there is no such token.
        registers: how many of the removed tokens are registers; the registers are the last of the removed tokens.
            Default: None, all removed tokens but the first.
        sequence_first: whether tokens come as ``(T, B, N)``, as in the blocks of OpenAI's CLIP. Default: False.

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
            ValueError: for a tensor without tokens, a ``class_token`` outside the tokens behind the prefix tokens, or
                patches that do not fill the grid.
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
                "tokens; count a class token before the patches in prefix_tokens"
            )
        if index is not None:
            tokens = torch.cat([tokens[:, :index], tokens[:, index + 1 :]], 1)
        count = tokens.shape[1] - self.prefix_tokens
        side = math.isqrt(max(count, 0))
        height, width = self.size or (side, side)
        if count < 1 or height * width != count:
            and_class_token = "" if index is None else " and a class token"
            raise ValueError(
                f"token_grid: {total} tokens minus {self.prefix_tokens} prefix tokens{and_class_token} do not fill a "
                f"grid of {height} x {width}; pass TokenGrid(size=(h, w), prefix_tokens=...)"
            )
        return tokens[:, self.prefix_tokens :].transpose(1, 2).unflatten(2, (height, width))


@dataclass(frozen=True)
class TokenHints:
    """Numbers of special tokens, read from the names of parameters such as ``cls_token``, ``reg_token``, ``query``.

    Attributes:
        class_tokens: number of class tokens, a distillation token included.
        registers: number of registers.
        queries: sizes of the sets of learned queries, which have no place in the image.
    """

    class_tokens: int = 0
    registers: int = 0
    queries: frozenset[int] = frozenset()

    @classmethod
    def of(cls, model: nn.Module) -> TokenHints:
        """Read the names and sizes of the parameters of a model."""
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
    """Whether a parameter holds registers, not class tokens, by the last part of its dotted name.

    Example:
        >>> names_registers("encoder.reg_token"), names_registers("regions.cls_token")
        (True, False)
    """
    name = path.rpartition(".")[2].lower()
    return any(word in name for word in ("reg", "storage"))


def measure_token_grid(
    count: int, image: Sequence[int], constant: Sequence[int] = (), hints: TokenHints | None = None
) -> TokenGrid | None:
    """Find the grid of patches among the tokens: a grid with the aspect ratio of the image, up to one row or column.

    Tokens that are equal for all images are no patches. Where no token is constant, special tokens may have been mixed
    with the patches before. Then the tokens to remove are, in this order: none, or the class tokens and registers that
    the hints name, whichever leaves the grid whose aspect ratio is closest to that of the image; else the smallest
    number of tokens that leaves a grid with exactly the aspect ratio of the image.

    Args:
        count: number of tokens, T.
        image: H and W.
        constant: indices of the tokens that do not depend on the image. Default: none.
        hints: numbers of special tokens, from the names of parameters. Default: None, no special tokens.

    Returns:
        The grid, with ``size=None`` for a square grid; None if no grid fits.

    Example:
        >>> measure_token_grid(25, (64, 96), constant=[0])
        TokenGrid(size=(4, 6), prefix_tokens=1, class_token=None, registers=None, sequence_first=False)
    """
    hints = hints or TokenHints()
    if count in hints.queries:
        return None
    constant = tuple(constant)
    if constant and (constant == tuple(range(len(constant))) or len(constant) == 1):
        size = _grid_like(image, count - len(constant))
        return None if size is None else _grid_without(constant, size, hints)
    candidates = []  # pairs of a number of prefix tokens and the grid of the other tokens
    for prefix in (0, hints.class_tokens + hints.registers, hints.class_tokens, hints.registers):
        size = _grid_like(image, count - prefix)
        if size is not None:
            candidates.append((prefix, size))
    if not candidates:
        sizes = ((prefix, _grid_like(image, count - prefix)) for prefix in range(1, count // 2))
        candidates = [(prefix, size) for prefix, size in sizes if size is not None and not _stretch(size, image)][:1]
    if not candidates:
        return None
    prefix, size = min(candidates, key=lambda pair: _stretch(pair[1], image))
    return _grid_without(tuple(range(prefix)), size, hints)


def _grid_without(special: tuple[int, ...], size: tuple[int, int], hints: TokenHints) -> TokenGrid:
    """The TokenGrid that removes the tokens of these indices: a prefix, or a single class token."""
    is_prefix = special == tuple(range(len(special)))
    registers = hints.registers if hints.registers + hints.class_tokens == len(special) > 0 else None
    return TokenGrid(
        size=None if size[0] == size[1] else size,
        prefix_tokens=len(special) if is_prefix else 0,
        class_token=None if is_prefix else special[0],
        registers=None if registers == len(special) - 1 else registers,  # None means all but the first
    )


def _grid_like(image: Sequence[int], count: int) -> tuple[int, int] | None:
    """The h x w = count > 1 that fits the image and is closest to its aspect ratio; None where no size fits."""
    sizes = ((height, count // height) for height in range(1, count + 1) if count % height == 0)
    fitting = [size for size in sizes if count > 1 and fits_image(size, image)]
    return min(fitting, key=lambda size: _stretch(size, image), default=None)


def _stretch(grid: Sequence[int], image: Sequence[int]) -> float:
    """The absolute log ratio of the aspect ratios of a grid and the image; zero for equal aspect ratios."""
    # w / h : W / H = (w H) / (h W), in whole numbers, so that equal ratios are exactly equal.
    numerator, denominator = grid[1] * image[0], grid[0] * image[1]
    return abs(math.log(numerator / denominator)) if numerator != denominator else 0.0


def fits_image(grid: Sequence[int], image: Sequence[int]) -> bool:
    """Whether steps of equal length in all directions divide the image into this grid, up to one position per side.

    Args:
        grid: sizes of the grid, ``(h, w)``.
        image: sizes of the image, ``(H, W)``.

    Example:
        >>> fits_image((4, 6), (64, 96)), fits_image((6, 4), (64, 96))
        (True, False)
    """
    # Positions per pixel that are possible for every side.
    least = max((side - 1) / length for side, length in zip(grid, image, strict=True))
    most = min((side + 1) / length for side, length in zip(grid, image, strict=True))
    return least < most


def looks_channels_last(scopes: Sequence[object], tensor: Tensor, n_features: int) -> bool:
    """Whether the channels of a tensor are probably in its last dimension.

    The numbers of channels for which modules are built decide: those in the first scope that has such modules. Without
    such modules the length of the embedding decides, which is more often a number of channels than a number of columns.

    Args:
        scopes: the layer, then the model.
        tensor: a tensor of the layer.
        n_features: length of the embedding, J.

    Example:
        >>> looks_channels_last([torch.nn.LayerNorm(32)], torch.zeros(2, 7, 7, 32), n_features=10)
        True
    """
    first, last = tensor.shape[1], tensor.shape[-1]
    for scope in scopes:
        channels_last, channels_first = _channel_sizes(scope) if isinstance(scope, nn.Module) else (set(), set())
        if channels_last or channels_first:
            return last in channels_last and first not in channels_first
    return last == n_features != first


def looks_channels_first(scopes: Sequence[object], tensor: Tensor) -> bool:
    """Whether the channels of a tensor are probably in dimension 1, where TokenGrid does not look for them.

    Modules of the scopes must be built for as many channels as dimension 1 has, and none for the last dimension.

    Args:
        scopes: the layer, then the model.
        tensor: a tensor of the layer.

    Example:
        >>> looks_channels_first([torch.nn.Conv2d(3, 32, 1)], torch.zeros(2, 32, 7, 7))
        True
    """
    sizes = [size for scope in scopes if isinstance(scope, nn.Module) for size in _channel_sizes(scope)]
    channels: set[int] = set().union(*sizes)
    return tensor.shape[1] in channels and tensor.shape[-1] not in channels


def _channel_sizes(scope: nn.Module) -> tuple[set[int], set[int]]:
    """The numbers of channels of modules: first modules with channels in the last dimension, then in dimension 1."""
    channels_last, channels_first = set(), set()
    for module in scope.modules():
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
