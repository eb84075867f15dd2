"""The stand-in for another processor reaches every product, and moves it by little."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from tests.perturbed_products import PerturbedProducts

LEFT = torch.randn(3, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
RIGHT = torch.randn(5, 7, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

PRODUCTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mm": lambda a, b: a @ b,
    "mm, transposed": lambda a, b: (b.T @ a.T).T,
    "bmm": lambda a, b: torch.bmm(a[None], b[None])[0],
    "addmm": lambda a, b: torch.addmm(torch.zeros(()).to(a), a, b),
    "addmm, scaled": lambda a, b: torch.addmm(torch.zeros(()).to(a), a, b, alpha=0.5) * 2,
    "baddbmm": lambda a, b: torch.baddbmm(torch.zeros(()).to(a), a[None], b[None])[0],
    "matmul": lambda a, b: torch.matmul(a.expand(2, 3, 5), b)[1],
    "einsum": lambda a, b: torch.einsum("ij,jk->ik", a, b),
    "linear": lambda a, b: torch.nn.functional.linear(a, b.T),
    "linear with a bias": lambda a, b: torch.nn.functional.linear(a, b.T, torch.zeros(7).to(a)),
    "mv": lambda a, b: torch.stack([a @ column for column in b.T], 1),
    "dot": lambda a, b: torch.stack([torch.stack([row @ column for column in b.T]) for row in a]),
}


class PassOn(TorchFunctionMode):
    """As the package's own modes do: runs what it is given."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


MODES: dict[str, Callable[[], AbstractContextManager[object]]] = {
    "grad": torch.enable_grad,
    "no_grad": torch.no_grad,
    "inference": torch.inference_mode,
    "function mode": PassOn,
}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("direction", ["up", "down"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("product", PRODUCTS)
def test_every_kind_of_product_moves_by_units_in_the_last_place(
    product: str, dtype: torch.dtype, mode: str, direction: Any
) -> None:
    left, right = LEFT.to(dtype), RIGHT.to(dtype)
    exact = left.double() @ right.double()
    with MODES[mode](), PerturbedProducts(direction):
        actual = PRODUCTS[product](left, right)
    error = (actual.double() - exact).abs() / (left.double().abs() @ right.double().abs())
    assert actual.dtype == dtype
    assert torch.finfo(dtype).eps / 8 < error.max() < 4 * torch.finfo(dtype).eps


def test_up_and_down_lie_on_both_sides() -> None:
    up, down = (_inside(direction, lambda: LEFT @ RIGHT) for direction in ("up", "down"))
    assert ((up - down) != 0).double().mean() > 0.8
    torch.testing.assert_close((up + down) / 2, LEFT @ RIGHT, rtol=1e-13, atol=1e-15)


def test_the_same_product_gives_the_same_result_and_one_of_other_rows_does_not() -> None:
    both = _inside("up", lambda: LEFT @ RIGHT)
    assert torch.equal(both, _inside("up", lambda: LEFT @ RIGHT))
    assert not torch.equal(both[:2], _inside("up", lambda: LEFT[:2] @ RIGHT))


def test_sums_of_zeros_stay_zero_and_terms_that_cancel_leave_rounding() -> None:
    row, rows = torch.full((3, 2), 0.5), torch.tensor([[0.3, 0.7, 0.0, 0.1], [-0.3, -0.7, 0.0, -0.1]])
    actual = _inside("up", lambda: row @ rows)
    assert (actual[:, 2] == 0).all()
    assert actual.any()
    assert actual.abs().max() < 1e-7


def test_products_on_the_way_back_move_too() -> None:
    left = LEFT.clone().requires_grad_()
    with PerturbedProducts("up"):
        (gradient,) = torch.autograd.grad((left @ RIGHT).square().sum(), left)
    exact = 2 * LEFT @ RIGHT @ RIGHT.T
    assert not torch.equal(gradient, exact)
    torch.testing.assert_close(gradient, exact, rtol=1e-13, atol=1e-13)


def test_whole_numbers_are_multiplied_as_they_are() -> None:
    left, right = torch.arange(6).view(2, 3), torch.arange(12).view(3, 4)
    assert torch.equal(_inside("down", lambda: left @ right), left @ right)


def test_a_product_that_does_not_fit_is_refused_as_ever() -> None:
    for left, right in (
        (LEFT, RIGHT[:4]),
        (LEFT[:, :3], RIGHT),
        (LEFT[None], RIGHT[None, 1:]),
        (LEFT[0], RIGHT[:4, 0]),
    ):
        with pytest.raises(RuntimeError), PerturbedProducts("up"):
            left @ right


def _inside(direction: Any, product: Callable[[], Tensor]) -> Tensor:
    with PerturbedProducts(direction):
        return product()
