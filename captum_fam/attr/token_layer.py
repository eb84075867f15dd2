"""Captum's layer methods on tokens: while a method runs, it explains the grid of a layer in place of its tokens."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from captum.attr import LayerAttribution
from torch import Tensor, nn

from captum_fam.attr.layer_hooks import active_run, eager, hook_layer
from captum_fam.attr.tokens import TokenGridLike


class TokenLayerAttribution(LayerAttribution):
    """Explains tokens with a layer method that takes feature maps, such as those of Captum.

    While ``attribute`` runs, the tokens of the layer are laid out as a grid ``(B, N, *spatial)``, the grid passes
    through a module of its own, and its values go back to their places among the tokens. The method explains the module
    of the grid. Class tokens and registers are not touched: the gradients that the method sees are those of the
    patches.

    :meth:`MapMethod.create <captum_fam.attr.MapMethod.create>` makes such an object for every method that does not take
    ``token_grid=`` itself.

    Args:
        make: class or function of ``(scores, layer, **options)`` that makes the method, such as
            ``captum.attr.LayerGradCam``.
        forward_func: the forward function that is explained, such as a :class:`~captum_fam.SimilarityToSupport`.
        layer: the module whose tokens are explained.
        token_grid: a :class:`~captum_fam.TokenGrid`, or another function that only selects and rearranges.
        **options: further arguments of ``make``.

    Raises:
        TypeError: for options that ``make`` does not take.

    Example:
        >>> from captum.attr import LayerGradCam
        >>> from captum_fam import SimilarityToSupport, TokenGrid
        >>> vit = torchvision.models.VisionTransformer(64, 16, num_layers=2, num_heads=2, hidden_dim=32, mlp_dim=64)
        >>> vit.heads = torch.nn.Identity()
        >>> scores = SimilarityToSupport(vit.eval(), torch.rand(5, 3, 64, 64))
        >>> method = TokenLayerAttribution(LayerGradCam, scores, vit.encoder.dropout, TokenGrid())
        >>> method.attribute(torch.rand(2, 3, 64, 64), target=0).shape
        torch.Size([2, 1, 4, 4])
    """

    def __init__(
        self,
        make: Callable[..., Any],
        forward_func: Callable[..., Any],
        layer: nn.Module,
        token_grid: TokenGridLike,
        **options: Any,
    ) -> None:
        super().__init__(forward_func, layer)
        self.token_grid = token_grid
        self._make, self._options = make, options
        # Each call makes the method again, because two threads may call one object. This one is only asked for its
        # signature and its convergence delta.
        self._method = make(forward_func, layer, **options)

    def has_convergence_delta(self) -> bool:
        """Whether the method can return a convergence delta."""
        has_delta: bool = getattr(self._method, "has_convergence_delta", bool)()
        return has_delta

    def attribute(self, *args: Any, **kwargs: Any) -> Any:
        """Compute the attributions of the grid.

        Args:
            *args: arguments of ``attribute`` of the method, the inputs first.
            **kwargs: further arguments by name.

        Returns:
            What the method returns, with ``(B, N, *spatial)`` or ``(B, 1, *spatial)`` in the place of tokens.

        Raises:
            ValueError: for tokens that do not fill the grid, a ``token_grid`` that does more than select and rearrange,
                or a layer whose output is no tensor or tuple of tensors.
        """
        grids = _Grids().train(self.layer.training)
        given = inspect.signature(self._method.attribute).bind(*args, **kwargs).arguments
        at_input = bool(kwargs.get("attribute_to_layer_input", given.get("attribute_to_layer_input", False)))

        def through_grid(_: nn.Module, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            places = [self._places(tensor) for tensor in tensors]
            laid_out = grids(*(tensor.flatten()[place] for tensor, place in zip(tensors, places, strict=True)))
            values = laid_out if isinstance(laid_out, tuple) else (laid_out,)
            return tuple(
                # An attribution may have changed the type or the number of copies, but not the places.
                tensor.flatten().scatter(0, place.flatten(), value.flatten().to(tensor.dtype)).view_as(tensor)
                for tensor, place, value in zip(tensors, places, values, strict=True)
            )

        with eager(), active_run() as run, hook_layer(self.layer, at_input, run, through_grid):
            return self._make(self.forward_func, grids, **self._options).attribute(*args, **kwargs)

    def _places(self, tensor: Tensor) -> Tensor:
        """The index, among all elements of a tensor, of each element of its grid, ``(B, N, *spatial)``."""
        numbers = torch.arange(tensor.numel(), device=tensor.device).view_as(tensor)
        places = self.token_grid(numbers)
        # A grid that only selects and rearranges does the same with the numbers from the other end.
        is_selection = places.dtype == numbers.dtype and torch.equal(
            self.token_grid(numbers.flip(tuple(range(numbers.dim())))), tensor.numel() - 1 - places
        )
        if not is_selection:
            raise ValueError(
                "token_grid: it computes new values, and a layer method of Captum needs one that only selects and "
                "rearranges elements, as TokenGrid does"
            )
        return places


class _Grids(nn.Module):
    """Passes on the grids of the tensors of a layer; this is the module that the method explains."""

    def forward(self, *grids: Tensor) -> Tensor | tuple[Tensor, ...]:
        return grids if len(grids) > 1 else grids[0]
