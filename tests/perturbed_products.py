"""Matrix products as another processor would round them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

Direction = Literal["up", "down"]
aten = torch.ops.aten

_PRODUCTS = {aten.mm.default, aten.bmm.default, aten.mv.default, aten.dot.default}
_SUMS = {
    aten.addmm.default: aten.mm.default,
    aten.baddbmm.default: aten.bmm.default,
    aten.addmv.default: aten.mv.default,
}
# Above autograd they are made of the products already; in inference mode they arrive whole.
_COMPOSED = {aten.matmul.default, aten.linear.default, aten.einsum.default}


class PerturbedProducts(TorchDispatchMode):
    """While it lasts, every matrix product in float32 or float64 is rounded in another way.

    The inner dimension is split in two, whose sums are added in the other order; both and their sum move by one unit in
    the last place, each value up or down. The pattern depends on the shape alone, so that the same product twice gives
    the same result, and one of other rows or columns does not: that is what processors do. Zeros, which are sums of
    zeros, stay zeros. Products on the way back are perturbed as well, and those within the package's own modes.

    Args:
        direction: the pattern, ``"up"``, or its opposite, ``"down"``.
    """

    def __init__(self, direction: Direction) -> None:
        super().__init__()
        self.direction = direction

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _COMPOSED:
            with self:
                return func.decompose(*args, **(kwargs or {}))
        if func in _PRODUCTS:
            return self._product(func, *args)
        if func in _SUMS:
            added, left, right = args
            scale = kwargs or {}
            product = self._product(_SUMS[func], left, right)
            return self._nudge(scale.get("beta", 1) * added + scale.get("alpha", 1) * product, 3)
        return func(*args, **(kwargs or {}))

    def _product(self, func: Callable[[Tensor, Tensor], Tensor], left: Tensor, right: Tensor) -> Tensor:
        inner = left.shape[-1]
        rows = max(right.dim() - 2, 0)
        if right.shape[rows] != inner:
            return func(left, right)  # which says so
        half = inner // 2
        first, second = (
            self._nudge(func(left.narrow(-1, start, count), right.narrow(rows, start, count)), part)
            for part, (start, count) in enumerate([(half, inner - half), (0, half)])
        )
        return self._nudge(first + second, 2)

    def _nudge(self, values: Tensor, part: int) -> Tensor:
        if values.dtype not in (torch.float32, torch.float64):
            return values
        generator = torch.Generator().manual_seed(abs(hash((tuple(values.shape), part))))
        up = torch.rand(values.shape, generator=generator) < 0.5
        if self.direction == "down":
            up = ~up
        end = torch.where(up.to(values.device), torch.inf, -torch.inf).to(values.dtype)
        return torch.where(values == 0, values, torch.nextafter(values, end))
