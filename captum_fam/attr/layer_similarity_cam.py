"""The exact additive map of a similarity as a Captum layer attribution."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, get_args

import torch
from torch import Tensor, nn

from captum_fam import functional as F
from captum_fam._arithmetic import plain_arithmetic
from captum_fam._captum import TargetType
from captum_fam._training_mode import module_in_training_mode
from captum_fam.attr.account import (
    MAP,
    NOISE,
    REST,
    ZERO_EMBEDDING,
    Biases,
    Shares,
    coverage_in_words,
    drop_noise,
    laid_out,
    resample,
)
from captum_fam.attr.base import SimilarityLayerAttribution
from captum_fam.attr.call import LayerCall, LayerMaps
from captum_fam.attr.details import Maps
from captum_fam.attr.tokens import TokenGridLike
from captum_fam.attr.views import Views
from captum_fam.attr.way_back.constants import Constants
from captum_fam.attr.way_back.way import Way
from captum_fam.attr.way_back.where import CLASS_TOKEN, REGISTERS
from captum_fam.similarity import SimilarityLike
from captum_fam.support import Support

_Account = tuple[tuple[Tensor, ...], Shares]


class LayerSimilarityCAM(SimilarityLayerAttribution):
    r"""Class activation map of a similarity: every position's share of the score, adding up to it.

    With u the linear weights of the similarity at the embedding (for the cosine, the mean unit support over
    the query's norm) and every scale of the network behind the layer held at its value in this pass (norms, deviations
    of normalization layers, attention weights, gates: :mod:`captum_fam.attr.way_back`), the map is
    :math:`M_p = \sum_n A_{n,p}\, \partial \langle Z', u \rangle / \partial A_{n,p}`. For average pooling and a linear
    head W this is :math:`\frac1P \sum_n (W \bar t)_n A_{n,p} / \|Z'\|`, CAM with the support in the place of the
    classifier's weights.

    What the network behind the layer adds by itself, a bias or a shift, acts at the positions of its own output; its
    share, gradient x bias, is laid on the map there (Srinivas and Fleuret, "Full-Gradient Representation for Neural
    Network Visualization", NeurIPS 2019). So the map adds up to the explained score, at an early layer too, but for the
    parts that have no place in the image: a class token, registers, biases behind the pooling. ``details`` names them,
    and a warning is given where the map explains less than half of the score. Parts that cannot be followed (scripted
    code, autograd functions of the user, log-sum-exp pooling) keep their own gradient; what that misses is the
    ``"rest"``. With a foil the map is signed and sums to the difference of the scores.

    For distances the explained score counts from the zero vector: see :mod:`captum_fam.similarity`.

    A layer that runs several times is explained where the embedding depends on one of its passes, or where the model is
    a :class:`~captum_fam.Views`. Each of several layers costs a pass.

    Args:
        forward_func: an embedding model, ``forward_func(x) -> (B, J)``, or a
            :class:`~captum_fam.SimilarityToSupport`, which brings its support, similarity and foil.
        layer: a module, its dotted name in ``forward_func``, or a list of these.
        device_ids: for the same signature as all layer methods of Captum; the pass is made on one device.
        similarity: the measure the model decides with.
        token_grid: rearranges the layer's tensors into ``(B, N, *spatial)``: :class:`~captum_fam.TokenGrid`.
            Tokens that it drops have shares of their own, ``"class token"`` and ``"registers"``.
        biases: ``"positions"`` lays the shares of biases where they act; ``"apart"`` keeps them off the map.

    Raises:
        ValueError: for a similarity without linear weights (``EuclideanDifference``), or unknown ``biases``.

    Example:
        >>> cam = LayerSimilarityCAM(SimilarityToSupport(model, support, foil="others"), model.layer4)
        >>> attributions, delta = cam.attribute(queries, target=3, return_convergence_delta=True)
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        layer: nn.Module | str | Sequence[nn.Module | str],
        device_ids: list[int] | None = None,
        *,
        similarity: SimilarityLike = "cosine",
        token_grid: TokenGridLike | None = None,
        biases: Biases = "positions",
    ) -> None:
        super().__init__(forward_func, layer, device_ids, similarity=similarity, token_grid=token_grid)
        self.similarity.require_weights()
        if biases not in get_args(Biases):
            raise ValueError(f'biases must be "positions" or "apart", got {biases!r}')
        self.biases = biases
        # Set it to be spared the warning that a map explains little.
        self.has_warned = False

    @classmethod
    def get_name(cls) -> str:
        return "Layer Similarity CAM"

    @property
    def multiplies_by_inputs(self) -> bool:
        """Whether attributions hold the activation as a factor, in Captum's words: True."""
        return True

    def has_convergence_delta(self) -> bool:
        return True

    def compute_convergence_delta(
        self,
        attributions: Maps,
        start_point: object,
        end_point: Tensor | tuple[Tensor, ...],
        target: TargetType = None,
        additional_forward_args: object = None,
        *,
        support: Support | Tensor | None = None,
    ) -> Tensor:
        """The sum of attributions less the explained score, ``(B,)``: Captum's signature, and the support.

        Args:
            attributions: of one layer, as :meth:`attribute` gave them; not cut at zero.
            start_point: not looked at: attributions count from the zero embedding, whose score is the baseline.
            end_point: the queries, ``(B, C, H, W)``, or a tuple of the model's input tensors.
            target: as in :meth:`attribute`.
            additional_forward_args: as there.
            support: as there.

        Raises:
            ValueError: for attributions of another batch than the queries.
        """
        comparison = self.run(end_point, support, target, additional_forward_args, False).comparison
        tensors = attributions if isinstance(attributions, tuple | list) else (attributions,)
        explained = comparison.explained_score
        if any(not isinstance(one, Tensor) or len(one) != len(explained) for one in tensors):
            raise ValueError(f"attributions must be tensors of a batch of {len(explained)}, as end_point is")
        return sum((one.flatten(1).sum(1) for one in tensors if isinstance(one, Tensor)), start=-explained)

    def map_layers(self, call: LayerCall) -> LayerMaps:
        """The way back with scales held, from the weights of the embedding to shares of positions and named parts."""
        self.passes_of(call.run)  # refuses a layer that does not fit before the work is done
        comparison = call.comparison
        with plain_arithmetic(call.run.embedding.device):
            weights = comparison.over_supports(self.similarity.weights, comparison.support_weights)
            # Of what the score is made, before a foil is taken off: rounding noise is relative to it.
            sizes = torch.maximum(comparison.similarities.abs(), comparison.explained.abs())
            magnitude = (comparison.support_weights.abs() * sizes).sum(1)
            accounts = [self._account(way, weights, call, magnitude) for way in call.run.ways]
        explained = comparison.explained_score
        shares = [parts for _, parts in accounts]
        coverages = [_ratio(parts[MAP], explained) for parts in shares]
        if not self.has_warned:
            self._note_little(call, shares, coverages, magnitude)
        return LayerMaps(
            [maps for maps, _ in accounts],
            convergence_deltas=[parts[MAP] - explained for parts in shares],
            coverages=coverages,
            shares=shares,
        )

    def recording(self) -> dict[str, Any]:
        return {"tape": True, "places": True, "token_grid": self.token_grid}

    def _account(self, way: Way, weights: Tensor, call: LayerCall, magnitude: Tensor) -> _Account:
        """The maps of one layer and the named parts of the score."""
        live, (pulled, constants) = way.live, way.account(weights)
        comparison, of_views = call.comparison, isinstance(self.model, Views)
        maps: list[Tensor] = []
        off_map = Constants(len(weights))
        for start, pairs in zip(live, pulled, strict=True):
            view = start.view if of_views else None
            laid_out_pairs = [[one if self.token_grid is None else self.token_grid(one) for one in p] for p in pairs]
            shares = [F.widen(gradient) * activation for gradient, activation in laid_out_pairs]
            if call.sum_channels:
                shares = [share.sum(1, keepdim=True) for share in shares]
            shares = [self.lay_back(share, view) for share in shares]
            # Views of other sizes have other grids over the same image.
            maps = [a + resample(b, tuple(a.shape[2:])) for a, b in zip(maps, shares, strict=True)] if maps else shares
            for (gradient, activation), where in zip(pairs, start.where, strict=True):
                if self.token_grid is not None:
                    off_map.add(gradient, activation, None, None, where, start.view)
        grid = tuple(maps[0].shape[2:])
        placed, parts = laid_out(constants, grid, self.biases, self.lay_back)
        if placed is not None:
            maps[0] = maps[0] + placed / maps[0].shape[1]
        maps = [drop_noise(map_, magnitude) for map_ in maps]
        for key in off_map.placed:
            for slot, name in ((CLASS_TOKEN, "class token"), (REGISTERS, "registers")):
                share = off_map.slots(*key)[:, slot]
                if share.any():
                    parts[name] = parts[name] + share if name in parts else share
        start_score = comparison.score - comparison.explained_score
        if start_score.any():
            parts[ZERO_EMBEDDING] = start_score
        total = sum((one.flatten(1).sum(1) for one in maps), start=torch.zeros_like(comparison.score))
        rest = comparison.score - total - sum(parts.values())
        return tuple(maps), {MAP: total, **parts, REST: rest}

    def _note_little(self, call: LayerCall, shares: list[Shares], coverages: list[Tensor], magnitude: Tensor) -> None:
        """Note, once per object, a map that explains less than half of its score."""
        for parts, coverage in zip(shares, coverages, strict=True):
            missing = _missing(parts, magnitude)
            worst = int(missing.argmax())
            if missing[worst] > 0.5:
                self.has_warned = True
                explained = float(coverage[worst])
                words = coverage_in_words(explained, {name: float(share[worst]) for name, share in parts.items()})
                call.notes.append(f"the map {words}. {self._better_layer(call.inputs, explained)}")
                return

    def _better_layer(self, inputs: tuple[Tensor, ...], coverage: float) -> str:
        """Which layer explains more, in words."""
        from captum_fam.attr.layer_search import find_layer  # it measures layers by this class

        advice = "Choose an earlier layer, or one around what the layer is a part of"
        # Passes in training mode would move the statistics of batch norms.
        model = self.model
        if not isinstance(model, nn.Module) or module_in_training_mode(model) or len(inputs) > 1:
            return advice
        try:
            found = find_layer(model, inputs[0])
        except ValueError:
            return advice
        if found.coverage <= max(coverage, 0.0) + 0.05 or found.module in self.layers:
            return "No layer explains more"
        return f"Layer {found.name!r} explains {100 * found.coverage:.0f} % of the similarity of a query to itself"


def _ratio(part: Tensor, whole: Tensor) -> Tensor:
    return torch.where(whole == 0, torch.nan, part / torch.where(whole == 0, 1.0, whole))


def _missing(shares: Shares, magnitude: Tensor) -> Tensor:
    """What the map misses of the score, over the larger of the score and the sum of absolute parts, ``(B,)``."""
    parts = torch.stack([share for name, share in shares.items() if name != ZERO_EMBEDDING])
    score, size = parts.sum(0), parts.abs().sum(0)
    whole = torch.maximum(score.abs(), size)
    # Of a score that is only rounding noise nothing is missing.
    return torch.where(whole <= NOISE * magnitude, 0.0, (score - shares[MAP]).abs() / whole)
