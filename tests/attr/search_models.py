"""Small networks with layers to find, and images for them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def images(count: int, *size: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def randomly(net: nn.Module) -> Any:
    """All parameters random, in float64: no bias is zero and no class token a constant."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_(parameter + 0.1 * noise if parameter.dim() == 1 else 0.4 * noise)
    return net.double().eval()


def convolutions(*channels: int) -> nn.Sequential:
    return nn.Sequential(
        *(
            nn.Sequential(nn.Conv2d(before, after, 3, 2, 1), nn.BatchNorm2d(after), nn.ReLU())
            for before, after in zip((3, *channels), channels, strict=False)
        )
    )


class Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


class TakesOver(nn.Module):
    """A block in which the class token adds a part of the patches' mean to itself; nothing else happens."""

    def __init__(self, part: float, class_token: int) -> None:
        super().__init__()
        self.part, self.class_token = part, class_token

    def forward(self, tokens: Tensor) -> Tensor:
        before, token, behind = tokens.split([self.class_token, 1, tokens.shape[1] - self.class_token - 1], 1)
        patches = torch.cat([before, behind], 1)
        taken = token + self.part * patches.mean(1, keepdim=True)
        return torch.cat([before, taken, behind], 1)


class ByHand(nn.Module):
    """Patches of 4 x 4 and a class token, zero at first, that takes over a part of their mean in every block.

    Behind block k the patches still have what the later blocks take, in the units of the sum of all parts.
    """

    def __init__(self, parts: tuple[float, ...], class_token: int = 0) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, stride=4, bias=False)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, 8))
        self.joined = nn.Identity()
        self.blocks = nn.ModuleList(TakesOver(part, class_token) for part in parts)
        self.norm = nn.Identity()
        self.class_token = class_token

    def forward(self, x: Tensor) -> Tensor:
        tokens, token = self.patches(x).flatten(2).transpose(1, 2), self.cls_token.expand(len(x), -1, -1)
        before, behind = tokens.split([self.class_token, tokens.shape[1] - self.class_token], 1)
        tokens = self.joined(torch.cat([before, token, behind] if self.class_token else [token, tokens], 1))
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens)[:, self.class_token]
