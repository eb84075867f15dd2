"""The way back itself: gradients from the embedding to the tensors of a layer, and the shares of constants."""

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
    "layer: the embedding does not depend on it, or no gradient comes back from there, so that a map would explain no "
    "score; choose a layer on the way to the embedding (for a class token, one before the last attention), or mend "
    "what is not differentiable between the two (.data or detach() in a sum, a quantized, scripted or traced part): "
    "pass the eager model in floating point"
)


@dataclass(frozen=True)
class Start:
    """One pass through the module whose tensors are the ends of the way back.

    Attributes:
        tensors: leaves of the graph.
        view: which of several views of the input this pass belongs to.
        where: the positions of each tensor.
    """

    tensors: Tensors
    view: int = 0
    where: tuple[Where | None, ...] = ()


@dataclass(frozen=True)
class Detected:
    """What the way back found out about the model by itself.

    Attributes:
        passes: how often the layer ran.
        live: numbers of the passes that the embedding depends on; several for a model of several views.
        is_rescaled: whether the embedding is a vector times a positive number per sample, as behind a normalization.
        left_graph: whether the embedding itself has no gradient (``detach()``, numpy), so that the way begins at a
            vector of the same direction.
        joined: the slot of each constant that is joined to the tokens behind the layer (``CLASS_TOKEN`` or
            ``REGISTERS`` of :mod:`captum_fam.attr.way_back.where`), by the name of its parameter.
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
        starts: one per pass through the module.
        origin: where the way begins: the embedding, or a vector that the embedding is a rescaling of.
        factor: ``(B, 1)``, what the embedding is the vector times that the last layer gave; None for one.
        is_end: whether the origin is the embedding itself, and not a vector whose direction the embedding has.
        sink: takes the shares of constants.
        joined: the slot of each constant that is joined to the tokens behind the layer, by the name of its parameter.
    """

    starts: list[Start]
    origin: Tensor
    factor: Tensor | None
    is_end: bool
    sink: Sink
    joined: dict[str, int] = field(default_factory=dict)

    @property
    def detected(self) -> Detected:
        """What was not said by hand."""
        live = self.live
        counts = tuple(number for number, start in enumerate(self.starts) if any(start is one for one in live))
        return Detected(len(self.starts), counts, self.factor is not None, not self.is_end, dict(self.joined))

    @cached_property
    def live(self) -> list[Start]:
        """The passes that the embedding depends on.

        Raises:
            ValueError: if it depends on none.
        """
        # One pass on the graph needs no look: pulling from it fails where it does not reach the layer.
        if len(self.starts) == 1 and self.origin.requires_grad:
            return self.starts
        reached = self._gradients(torch.ones_like(self.origin), self.starts, True) if self.origin.requires_grad else []
        live = [
            start for start, pulled in zip(self.starts, reached, strict=False) if any(g is not None for g in pulled)
        ]
        if not live:
            raise ValueError(NO_WAY_BACK)
        return live

    def pull(self, cotangent: Tensor, is_contribution: bool = False) -> list[list[tuple[Tensor, Tensor]]]:
        r"""Vector-Jacobian product :math:`J^\top u` of the head, scales held: per live pass, gradients and tensors.

        Args:
            cotangent: ``(B, J)``, on the features of the embedding.
            is_contribution: the cotangent is a contribution, which is the same before and after a rescaling of the
                embedding, and no weight.

        Raises:
            ValueError: if a pass has no influence on the embedding.
        """
        return self._pull(cotangent, is_contribution)[0]

    def account(self, cotangent: Tensor) -> tuple[list[list[tuple[Tensor, Tensor]]], Constants]:
        """:meth:`pull` of a weight, with what constants on the way add to ``<cotangent, embedding>``."""
        _ = self.live  # looking for it pulls gradients too, which are no part of the account
        self.sink.constants = Constants(len(cotangent))
        try:
            pulled, scale = self._pull(cotangent, False)
            constants = self.sink.constants
        finally:
            self.sink.constants = None
        if scale is not None:
            constants.scale(scale)
        return pulled, constants

    def _pull(
        self, cotangent: Tensor, is_contribution: bool
    ) -> tuple[list[list[tuple[Tensor, Tensor]]], Tensor | None]:
        """Gradients and tensors, and what the backward pass itself has to be multiplied by, ``(B,)``; None for one."""
        live = self.live
        if self.factor is not None and is_contribution == self.is_end:
            # To the vector before the last rescaling, a contribution goes as it is and a weight times the factor.
            factor = self.factor.to(cotangent)
            cotangent = cotangent / factor if is_contribution else cotangent * factor
        # In half precision shares of a large map would underflow; the way back is linear, so scale before and after.
        half = torch.finfo(self.origin.dtype).bits == 16
        largest = cotangent.abs().amax(1).clamp_min(torch.finfo(cotangent.dtype).tiny)
        scale = largest if half else None
        upstream = cotangent if scale is None else cotangent / scale.unsqueeze(1)
        gradients = self._gradients(upstream.to(self.origin).view_as(self.origin), live, False)
        if any(gradient is None for pulled in gradients for gradient in pulled):
            raise ValueError(NO_WAY_BACK)
        return [
            [
                (g if scale is None else F.widen(g) * scale.view(-1, *[1] * (g.dim() - 1)), tensor.detach())
                for g, tensor in zip(pulled, start.tensors, strict=True)
            ]
            for pulled, start in zip(gradients, live, strict=True)
        ], scale

    def _gradients(self, upstream: Tensor, starts: list[Start], keep_graph: bool) -> list[list[Tensor]]:
        wanted = [tensor for start in starts for tensor in start.tensors]
        try:
            with torch.inference_mode(False):
                found = iter(torch.autograd.grad(self.origin, wanted, upstream, keep_graph, allow_unused=True))
        except RuntimeError as error:
            if "inplace operation" not in str(error):
                raise
            raise ValueError(
                "layer: what stands between it and the embedding overwrites a tensor that the way back needs, by an "
                "operation in place on the result of another; make that operation one of a new tensor, or explain a "
                "layer behind it"
            ) from error
        return [[next(found) for _ in start.tensors] for start in starts]
