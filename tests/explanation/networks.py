"""A network with two layers to explain."""

from __future__ import annotations

from torch import Tensor, nn


class TwoLayers(nn.Module):
    """7 x 5 positions, then 3 x 2, then a head; a batch norm between has a shift."""

    def __init__(self) -> None:
        super().__init__()
        self.fine = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.LeakyReLU(0.3))
        self.coarse = nn.Sequential(nn.Conv2d(6, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU())
        self.head = nn.Linear(8, 4, bias=False)
        nn.init.normal_(self.coarse[1].bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.coarse(self.fine(x)).mean((2, 3)))
