"""The exact additive map of a similarity as a Captum layer attribution."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, get_args

import torch
from captum._utils.typing import TargetType
from torch import Tensor, nn

from captum_fam import functional as F
from captum_fam._training_mode import module_in_training_mode
from captum_fam.attr._base import Comparison, Maps, SimilarityLayerAttribution, outside
from captum_fam.attr._layer_run import Way
from captum_fam.attr._repeated import logged_attribute
from captum_fam.attr._way_back import Constants
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
from captum_fam.attr.positions import CLASS_TOKEN, REGISTERS
from captum_fam.attr.tokens import TokenGridLike
from captum_fam.attr.views import Views
from captum_fam.similarity import SimilarityLike
from captum_fam.support import plain_arithmetic

_Account = tuple[tuple[Tensor, ...], Shares]


class SimilarityCAMDetails(NamedTuple):
    """Everything :class:`LayerSimilarityCAM` computed on its way to the maps.

    Attributes:
        attributions: what ``attribute`` returns.
        convergence_delta: the sum of the attributions less the explained score, ``(B,)``; a list for a list of layers.
        comparison: scores, classes and support weights.
        coverage: the sum of the attributions over the explained score, ``(B,)``; NaN where the score is zero. A list
            for a list of layers.
        shares: named parts of the score, each ``(B,)`` and computed by itself; they add up to ``comparison.score``. A
            list for a list of layers. ``"map"`` and ``"rest"`` (what none of the parts accounts for) are always there;
            where they exist, ``"class token"``, ``"registers"``, ``"bias"`` (constants behind the pooling; with
            ``biases="apart"`` all constants, a class token that is joined behind the layer among them), ``"other
            paths"`` (what comes from the image around the layer, as through a shortcut) and ``"zero embedding"``
            (where a distance starts from).
    """

    attributions: Maps
    convergence_delta: Tensor | list[Tensor]
    comparison: Comparison
    coverage: Tensor | list[Tensor]
    shares: Shares | list[Shares]


class LayerSimilarityCAM(SimilarityLayerAttribution):
    r"""Class activation map of a similarity: every position's share of the score, adding up to it.

    With u the linear weights of the similarity at the embedding (for the cosine, the mean unit support over
    the query's norm) and every scale of the network behind the layer held at its value in this pass (norms, deviations
    of normalization layers, attention weights, gates: :mod:`captum_fam.attr.held_scales`), the map is
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
        ValueError: for a measure without linear weights (a distance with ``rule="difference"``), or unknown ``biases``.

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
        support: object = None,
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
        _, comparison = self._compare(end_point, support, target, additional_forward_args, False)
        tensors = attributions if isinstance(attributions, tuple | list) else (attributions,)
        explained = comparison.explained_score
        if any(not isinstance(one, Tensor) or len(one) != len(explained) for one in tensors):
            raise ValueError(f"attributions must be tensors of a batch of {len(explained)}, as end_point is")
        return sum((one.flatten(1).sum(1) for one in tensors if isinstance(one, Tensor)), start=-explained)

    @logged_attribute
    def attribute(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        support: object = None,
        target: TargetType = None,
        additional_forward_args: object = None,
        attribute_to_layer_input: bool = False,
        relu_attributions: bool = False,
        attr_dim_summation: bool = True,
        return_convergence_delta: bool = False,
    ) -> Maps | tuple[Maps, Tensor | list[Tensor]]:
        """Compute the map of every query.

        Args:
            inputs: queries, ``(B, C, H, W)``, or a tuple of the model's input tensors.
            support: as in :meth:`LayerFAM.attribute <captum_fam.LayerFAM.attribute>`.
            target: the class to explain, in any form that Captum takes; None: the predicted class.
            additional_forward_args: further arguments of ``forward_func``.
            attribute_to_layer_input: explain the input of the layer instead of its output.
            relu_attributions: cut negative values of the map at zero, after the delta was taken.
            attr_dim_summation: sum over the channels; False keeps the share of each channel and position.
            return_convergence_delta: also return how far the map's sum is from the explained score.

        Returns:
            *Tensor* or *tuple[Tensor, ...]* of **attributions**, ``(B, 1, *spatial)`` of the layer, or
            ``(B, N, *spatial)`` without summation; detached, in float32 at least. A tuple where the layer
            gives several tensors; a list where ``layer`` is one. With ``return_convergence_delta`` a pair with
            **delta**, ``(B,)``, the sum of the attributions less the explained score; a list for a list of
            layers.

        Raises:
            ValueError, TypeError: for a support or layer that does not fit; the message says which.
            AssertionError: for a target that Captum refuses.
        """
        details = self.details(
            inputs,
            support,
            target,
            additional_forward_args,
            attribute_to_layer_input,
            relu_attributions,
            attr_dim_summation,
        )
        if not return_convergence_delta:
            return details.attributions
        return details.attributions, details.convergence_delta

    def details(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        support: object = None,
        target: TargetType = None,
        additional_forward_args: object = None,
        attribute_to_layer_input: bool = False,
        relu_attributions: bool = False,
        attr_dim_summation: bool = True,
    ) -> SimilarityCAMDetails:
        """As :meth:`attribute`, with the delta, scores and classes beside the maps."""
        run, comparison = self._compare(
            inputs,
            support,
            target,
            additional_forward_args,
            attribute_to_layer_input,
            tape=True,
            places=True,
            token_grid=self.token_grid,
        )
        self._passes(run)  # refuses a layer that does not fit before the work is done
        with plain_arithmetic(run.embedding.device):
            weights = comparison.over_supports(self.similarity.weights, comparison.support_weights)
            # Of what the score is made, before a foil is taken off: rounding noise is relative to it.
            sizes = torch.maximum(comparison.similarities.abs(), comparison.explained.abs())
            magnitude = (comparison.support_weights.abs() * sizes).sum(1)
            accounts = [self._account(way, weights, comparison, magnitude, attr_dim_summation) for way in run.ways]
        explained = comparison.explained_score
        deltas = [shares[MAP] - explained for _, shares in accounts]
        coverages = [_ratio(shares[MAP], explained) for _, shares in accounts]
        single = isinstance(self.layer, nn.Module | str)
        details = SimilarityCAMDetails(
            self._format([maps for maps, _ in accounts], relu_attributions),
            deltas[0] if single else deltas,
            comparison,
            coverages[0] if single else coverages,
            accounts[0][1] if single else [shares for _, shares in accounts],
        )
        if not self.has_warned:
            self._warn_of_little(accounts, coverages, magnitude, inputs)
        return details

    def _account(
        self, way: Way, weights: Tensor, comparison: Comparison, magnitude: Tensor, attr_dim_summation: bool
    ) -> _Account:
        """The maps of one layer and the named parts of the score."""
        live, (pulled, constants) = way.live, way.account(weights)
        of_views = isinstance(self._model, Views)
        maps: list[Tensor] = []
        off_map = Constants(len(weights))
        for start, pairs in zip(live, pulled, strict=True):
            view = start.view if of_views else None
            laid_out_pairs = [[one if self.token_grid is None else self.token_grid(one) for one in p] for p in pairs]
            shares = [F.widen(gradient) * activation for gradient, activation in laid_out_pairs]
            if attr_dim_summation:
                shares = [share.sum(1, keepdim=True) for share in shares]
            shares = [self._lay_back(share, view) for share in shares]
            # Views of other sizes have other grids over the same image.
            maps = [a + resample(b, tuple(a.shape[2:])) for a, b in zip(maps, shares, strict=True)] if maps else shares
            for (gradient, activation), where in zip(pairs, start.where, strict=True):
                if self.token_grid is not None:
                    off_map.add(gradient, activation, None, None, where, start.view)
        grid = tuple(maps[0].shape[2:])
        placed, parts = laid_out(constants, grid, self.biases, self._lay_back)
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

    def _warn_of_little(
        self,
        accounts: list[_Account],
        coverages: list[Tensor],
        magnitude: Tensor,
        inputs: Tensor | tuple[Tensor, ...],
    ) -> None:
        """Warn, once per object, of a map that explains less than half of its score."""
        for (_, shares), coverage in zip(accounts, coverages, strict=True):
            missing = _missing(shares, magnitude)
            worst = int(missing.argmax())
            if missing[worst] > 0.5:
                self.has_warned = True
                explained = float(coverage[worst])
                words = coverage_in_words(explained, {name: float(share[worst]) for name, share in shares.items()})
                warnings.warn(f"the map {words}. {self._better_layer(inputs, explained)}", stacklevel=outside())
                return

    def _better_layer(self, inputs: Tensor | tuple[Tensor, ...], coverage: float) -> str:
        """Which layer explains more, in words."""
        from captum_fam.attr.layer_search import find_layer  # it measures layers by this class

        advice = "Choose an earlier layer, or one around what the layer is a part of"
        # Passes in training mode would move the statistics of batch norms.
        model = self._model
        if not isinstance(model, nn.Module) or module_in_training_mode(model) or not isinstance(inputs, Tensor):
            return advice
        try:
            found = find_layer(model, inputs)
        except ValueError:
            return advice
        if found.coverage <= max(coverage, 0.0) + 0.05 or found.module in self._layers:
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
