"""The backward pass: gradients from the embedding to the tensors of a layer, and the shares of constants."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from captum_fam import functional as F
from captum_fam.attr.way_back.constants import Constants, Sink
from captum_fam.attr.way_back.where import Where

Tensors = tuple[Tensor, ...]
UnitNorm = Literal["auto"] | bool

NO_WAY_BACK = (
    "layer: the embedding does not depend on it, or no gradient comes back from the embedding, so that a map would "
    "explain no score; choose a layer on the way to the embedding (for a class token, one before the last attention), "
    "or replace the part between the two that has no gradient (.data or detach() in a sum, a quantized, scripted or "
    "traced part): pass the eager model in floating point"
)


@dataclass(frozen=True)
class Start:
    """One pass through the layer, whose tensors are the leaves of the recorded graph.

    Attributes:
        tensors: the tensors of the layer, leaves of the graph.
        view: number of the view of the input that was run; 0 without views.
        where: the positions of each tensor; None where they are not followed.
    """

    tensors: Tensors
    view: int = 0
    where: tuple[Where | None, ...] = ()


@dataclass(frozen=True)
class Detected:
    """What the way back measured of the model.

    Attributes:
        passes: number of runs of the layer.
        live: numbers of the passes that the embedding depends on; several for a model of several views.
        is_rescaled: whether the embedding is a vector times a positive number per sample, as behind a normalization.
        left_graph: whether the embedding has no gradient (``detach()``, numpy), so that the way back begins at a
            recorded vector with the same direction.
        joined: by the name of a parameter that is joined to the tokens behind the layer, the slot of its share:
            ``CLASS_TOKEN`` or ``REGISTERS`` of :mod:`captum_fam.attr.way_back.where`.
    """

    passes: int
    live: tuple[int, ...]
    is_rescaled: bool
    left_graph: bool
    joined: dict[str, int]


@dataclass(frozen=True)
class Way:
    """The way back from the embedding to one module.

    Attributes:
        starts: one start per pass through the module.
        origin: the tensor where the backward pass begins: the embedding, or a vector with the direction of the
            embedding.
        factor: ``(B, 1)``, the embedding divided by the vector before the last normalization; None without a
            normalization.
        is_end: whether the origin is the embedding itself.
        sink: receives the shares of constants.
        joined: see :class:`Detected`.
        keep_graph: whether the way can be gone several times; the recorded graph then lives as long as the way.
            Default: False.
    """

    starts: list[Start]
    origin: Tensor
    factor: Tensor | None
    is_end: bool
    sink: Sink
    joined: dict[str, int] = field(default_factory=dict)
    keep_graph: bool = False

    @property
    def detected(self) -> Detected:
        """What the way back measured of the model.

        Raises:
            ValueError: as :attr:`live`.
        """
        live_ids = {id(start) for start in self.live}
        numbers = tuple(number for number, start in enumerate(self.starts) if id(start) in live_ids)
        return Detected(len(self.starts), numbers, self.factor is not None, not self.is_end, dict(self.joined))

    @cached_property
    def live(self) -> list[Start]:
        """The passes that the embedding depends on.

        Raises:
            ValueError: if the embedding depends on no pass.
        """
        # A single pass needs no check here: pull raises the error where no gradient reaches the layer.
        if len(self.starts) == 1 and self.origin.requires_grad:
            return self.starts
        reached = self._gradients(torch.ones_like(self.origin), self.starts, True) if self.origin.requires_grad else []
        live = [
            start
            for start, gradients in zip(self.starts, reached, strict=False)
            if any(gradient is not None for gradient in gradients)
        ]
        if not live:
            raise ValueError(NO_WAY_BACK)
        return live

    def pull(self, cotangent: Tensor, is_contribution: bool = False) -> list[list[tuple[Tensor, Tensor]]]:
        r"""Compute the vector-Jacobian product :math:`J^\top u` of the head, with scales held.

        Args:
            cotangent: u on the features of the embedding, ``(B, J)``.
            is_contribution: whether u is a contribution instead of a weight. Contributions are the same before and
                after a normalization of the embedding; weights change by the factor. Default: False.

        Returns:
            For each live pass, one pair of the gradient and the tensor per tensor of the pass.

        Raises:
            ValueError: if a pass has no influence on the embedding.
        """
        return self._pull(cotangent, is_contribution)[0]

    def account(self, cotangent: Tensor) -> tuple[list[list[tuple[Tensor, Tensor]]], Constants]:
        """:meth:`pull` of a weight, together with the shares of constants in ``<cotangent, embedding>``."""
        _ = self.live  # computed before the account begins, because the search for live passes pulls gradients too
        constants = Constants(len(cotangent))
        with self.sink.lock:
            self.sink.constants = constants
            try:
                pulled, scale = self._pull(cotangent, False)
            finally:
                self.sink.constants = None
        if scale is not None:
            constants.scale(scale)
        return pulled, constants

    def _pull(
        self, cotangent: Tensor, is_contribution: bool
    ) -> tuple[list[list[tuple[Tensor, Tensor]]], Tensor | None]:
        """The result of :meth:`pull`, and the factor ``(B,)`` that shares of constants still need, or None."""
        live = self.live
        if self.factor is not None and is_contribution == self.is_end:
            # embedding = factor * vector. A weight on the vector is factor times the weight on the embedding; a
            # contribution is the same on both. A backward pass from the embedding multiplies by the factor, which is
            # right for weights and is divided out for contributions. A backward pass from the vector does not multiply
            # by the factor, which only weights need.
            factor = self.factor.to(cotangent)
            cotangent = cotangent / factor if is_contribution else cotangent * factor
        # In half precision small gradients would underflow. The way back is linear, so that the cotangent is scaled to
        # a maximum of 1 before, and the gradients are scaled back after the backward pass.
        half = torch.finfo(self.origin.dtype).bits == 16
        largest = cotangent.abs().amax(1).clamp_min(torch.finfo(cotangent.dtype).tiny)
        scale = largest if half else None
        upstream = cotangent if scale is None else cotangent / scale.unsqueeze(1)
        gradients = self._gradients(upstream.to(self.origin).view_as(self.origin), live, False)
        if any(gradient is None for of_pass in gradients for gradient in of_pass):
            raise ValueError(NO_WAY_BACK)
        pairs = [
            [
                (
                    gradient if scale is None else F.widen(gradient) * scale.view(-1, *[1] * (gradient.dim() - 1)),
                    tensor.detach(),
                )
                for gradient, tensor in zip(of_pass, start.tensors, strict=True)
            ]
            for of_pass, start in zip(gradients, live, strict=True)
        ]
        return pairs, scale

    def _gradients(self, upstream: Tensor, starts: list[Start], keep_graph: bool) -> list[list[Tensor]]:
        """The gradients on the tensors of each start; None for a tensor without influence on the origin.

        For an upstream gradient that requires a gradient itself, the results are differentiable in it.
        """
        leaves = [tensor for start in starts for tensor in start.tensors]
        differentiable = upstream.requires_grad
        keep_graph = keep_graph or self.keep_graph or differentiable
        try:
            with torch.inference_mode(False), self.sink.lock:
                gradients = iter(
                    torch.autograd.grad(self.origin, leaves, upstream, keep_graph, differentiable, allow_unused=True)
                )
        except RuntimeError as error:
            if "inplace operation" not in str(error):
                raise
            if self.keep_graph:
                raise ValueError(
                    "a tensor that the way back needs has been overwritten since the forward pass: run the images "
                    "again if the weights of the model have changed, such as by a training step; an operation in place "
                    "behind the layer must make a new tensor instead"
                ) from error
            raise ValueError(
                "layer: an operation in place between the layer and the embedding overwrites a tensor that the way "
                "back needs; write the operation so that it makes a new tensor, or explain a layer behind it"
            ) from error
        return [[next(gradients) for _ in start.tensors] for start in starts]
