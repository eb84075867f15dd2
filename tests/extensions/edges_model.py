"""A model of a third party: fixed edge filters, which need no weights."""

import torch
from torch import Tensor, nn

from captum_fam import register_model


@register_model("edges", pretrained=True, size=48)
class Edges(nn.Module):
    """The mean response to horizontal and vertical edges of each color."""

    def __init__(self) -> None:
        super().__init__()
        self.filters = nn.Conv2d(3, 12, 3, stride=2, padding=1, bias=False)
        edge = torch.tensor([[1.0, 1, 1], [0, 0, 0], [-1, -1, -1]])
        kernels = torch.zeros(12, 3, 3, 3)
        for index, kernel in enumerate((edge, -edge, edge.T, -edge.T)):
            for color in range(3):
                kernels[3 * index + color, color] = kernel
        self.filters.weight = nn.Parameter(kernels)
        self.act = nn.ReLU()

    def forward(self, images: Tensor) -> Tensor:
        return self.act(self.filters(images)).mean((2, 3))
