"""The exact additive map of a similarity as a Captum layer attribution."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, get_args

import torch
from torch import Tensor, nn

from captum_fam._arithmetic import plain_arithmetic
from captum_fam._captum import TargetType
from captum_fam._training_mode import module_in_training_mode
from captum_fam.attr.account import (
    MAP,
    REST,
    ZERO_EMBEDDING,
    Biases,
    Shares,
    bias_in_words,
    coverage_in_words,
    drop_noise,
    missing_part,
)
from captum_fam.attr.base import SimilarityLayerAttribution
from captum_fam.attr.call import LayerCall, LayerMaps
from captum_fam.attr.details import Maps
from captum_fam.attr.layer_account import LayerAccount
from captum_fam.attr.tokens import TokenGridLike
from captum_fam.attr.way_back.way import Way
from captum_fam.similarity import Learned, SimilarityLike
from captum_fam.similarity.base import check_linear_weights
from captum_fam.support import Support

_Account = tuple[tuple[Tensor, ...], Shares]


class LayerSimilarityCAM(SimilarityLayerAttribution):
    r"""Class activation map of a similarity: the share of every position in the score. The shares sum to the score.

    Let u be the linear weights of the similarity at the embedding (for the cosine, the mean of the unit supports
    divided by the norm of the query). Every scale of the network behind the layer is held at its value in this pass:
    norms, deviations of normalization layers, attention weights and gates (:mod:`captum_fam.attr.way_back`). The map is

    .. math:: M_p = \sum_n A_{n,p}\, \partial \langle Z', u \rangle / \partial A_{n,p}.

    For average pooling and a linear head W this is :math:`\frac1P \sum_n (W \bar t)_n A_{n,p} / \|Z'\|`: CAM with the
    support in the place of the weights of the classifier.

    A bias or shift behind the layer acts at the positions of the output of its own module. Its share of the score,
    gradient x bias, is added to the map at these positions (Srinivas and Fleuret, "Full-Gradient Representation for
    Neural Network Visualization", NeurIPS 2019). The map therefore sums to the explained score, at an early layer too,
    except for parts that have no place in the image: a class token, registers, and biases behind the pooling.
    ``details`` names these parts, and a warning is given where the map explains less than half of the score. Code that
    cannot be followed (scripted code, autograd functions of the user, log-sum-exp pooling) keeps its own gradient; the
    part of the score that this gradient misses is the ``"rest"``. With a foil the map is signed and sums to the
    difference of the scores.

    For distances the explained score counts from the zero vector: see :mod:`captum_fam.similarity`.

    A layer that runs several times can be explained where the embedding depends on one of the passes only, or where the
    model is a :class:`~captum_fam.Views`. Several layers need one forward pass per layer.

    Args:
        forward_func: an embedding model, ``forward_func(x) -> (B, J)``, or a
            :class:`~captum_fam.SimilarityToSupport`, which has a support, a similarity and a foil already.
        layer: a module, its dotted name in ``forward_func``, or a list of modules and names.
        device_ids: an argument of all layer methods of Captum, without an effect here: the pass runs on one device.
            Default: None.
        similarity: the similarity that the model decides with: a name, a
            :class:`~captum_fam.similarity.Similarity`, or a differentiable function of two batches of embeddings.
            Default: "cosine".
        token_grid: rearranges the tensors of the layer into ``(B, N, *spatial)``, such as a
            :class:`~captum_fam.TokenGrid`. Tokens that the grid leaves out have the shares ``"class token"`` and
            ``"registers"``. Default: None, the tensors have that form.
        biases: ``"positions"`` adds the share of a bias to the map where the bias acts; ``"apart"`` leaves biases out
            of the map. Default: "positions".

    Raises:
        ValueError: for a similarity without linear weights (``EuclideanDifference``), or unknown ``biases``; as
            :class:`SimilarityLayerAttribution`.
        TypeError: as :class:`SimilarityLayerAttribution`.

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
        # Whether the warning of a map that explains little has been given. Set True to suppress the warning.
        self.has_warned = False

    @classmethod
    def get_name(cls) -> str:
        return "Layer Similarity CAM"

    @property
    def multiplies_by_inputs(self) -> bool:
        """True: attributions are gradient x activation. Captum asks every method for this property."""
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
        """The sum of the attributions minus the explained score, ``(B,)``. Captum's signature, with the support added.

        Args:
            attributions: the result of :meth:`attribute` for one layer, without ``relu_attributions``.
            start_point: not used: attributions count from the zero embedding, whose score is the baseline.
            end_point: the queries, ``(B, C, H, W)``, or a tuple of the model's input tensors.
            target: the target of :meth:`attribute`. Default: None, the predicted class of each query.
            additional_forward_args: further arguments of ``forward_func``. Default: None.
            support: the support of :meth:`attribute`. Default: None, that of the SimilarityToSupport.

        Raises:
            ValueError: for attributions with another batch size than the queries; as :meth:`attribute`.
            TypeError, AssertionError: as :meth:`attribute`.
        """
        comparison = self.run(end_point, support, target, additional_forward_args, False).comparison
        tensors = attributions if isinstance(attributions, tuple | list) else (attributions,)
        explained = comparison.explained_score
        if any(not isinstance(tensor, Tensor) or len(tensor) != len(explained) for tensor in tensors):
            raise ValueError(f"attributions must be tensors of a batch of {len(explained)}, as end_point is")
        return sum((tensor.flatten(1).sum(1) for tensor in tensors if isinstance(tensor, Tensor)), start=-explained)

    def map_layers(self, call: LayerCall) -> LayerMaps:
        """Go back from the weights of the embedding, with scales held, to the shares of positions and named parts."""
        self.passes_of(call.run)  # raises the error for an unsuitable layer before the backward pass
        comparison = call.comparison
        with plain_arithmetic(call.run.embedding.device):
            weights = comparison.linear_weights()
            # The magnitude of the score before the foil is subtracted: rounding noise is relative to this number.
            magnitude = comparison.term_magnitude
            similarity, explained = comparison.similarity, comparison.explained_score
            if not isinstance(similarity, Learned):  # its quadrature is rough, and warns
                check_linear_weights(similarity, weights, comparison.query, explained, magnitude)
            accounts = [self._account(way, weights, call, magnitude) for way in call.run.ways]
        shares = [parts for _, parts in accounts]
        coverages = [_ratio(parts[MAP], explained) for parts in shares]
        if not self.has_warned:
            self._note_low_coverage(call, shares, coverages, magnitude)
        return LayerMaps(
            [maps for maps, _ in accounts],
            convergence_deltas=[parts[MAP] - explained for parts in shares],
            coverages=coverages,
            shares=shares,
        )

    @property
    def account(self) -> LayerAccount:
        """How the account of a layer is laid out."""
        return LayerAccount(self.lay_back, self.token_grid, self.biases)

    def recording(self) -> dict[str, Any]:
        return {"tape": True, "places": True, "token_grid": self.token_grid}

    def _account(self, way: Way, weights: Tensor, call: LayerCall, magnitude: Tensor) -> _Account:
        """The maps of one layer and the named parts of the score."""
        comparison = call.comparison
        maps, parts = self.account.of(way, weights, call.sum_channels)
        maps = tuple(drop_noise(map_, magnitude) for map_ in maps)
        start_score = drop_noise((comparison.score - comparison.explained_score).unsqueeze(1), magnitude).squeeze(1)
        if start_score.any():
            parts[ZERO_EMBEDDING] = start_score
        total = sum((map_.flatten(1).sum(1) for map_ in maps), start=torch.zeros_like(comparison.score))
        rest = comparison.score - total - sum(parts.values())
        return maps, {MAP: total, **parts, REST: rest}

    def _note_low_coverage(
        self, call: LayerCall, shares: list[Shares], coverages: list[Tensor], magnitude: Tensor
    ) -> None:
        """Add a warning, once per object, for a map that explains less than half of its score."""
        for parts, coverage in zip(shares, coverages, strict=True):
            missing = missing_part(parts, magnitude)
            worst = int(missing.argmax())
            if missing[worst] > 0.5:
                self.has_warned = True
                explained = float(coverage[worst])
                named = {name: float(share[worst]) for name, share in parts.items()}
                words = coverage_in_words(explained, named)
                advice = bias_in_words(named) if self.biases == "positions" else None
                advice = advice or self._better_layer(call.inputs, explained)
                unexplained = parts[MAP][worst] - call.comparison.explained_score[worst]
                if float(parts[REST][worst].abs()) > 0.5 * float(unexplained.abs()):
                    advice += '. The "rest" is rounding, or code that the map cannot follow'
                call.notes.append(f"the map {words}. {advice}")
                return

    def _better_layer(self, inputs: tuple[Tensor, ...], coverage: float) -> str:
        """The advice of the warning: which layer explains more."""
        from captum_fam.attr.layer_search import find_layer  # find_layer imports this class

        advice = "Choose an earlier layer, or a module that contains this layer"
        # A search in training mode would change the running statistics of batch norms.
        model = self.model
        if not isinstance(model, nn.Module) or module_in_training_mode(model) or len(inputs) > 1:
            return advice
        try:
            better = find_layer(model, inputs[0])
        except ValueError:
            return advice
        if better.coverage <= max(coverage, 0.0) + 0.05 or better.module in self.layers:
            return (
                "None of the layers that find_layer measured explains over 5 % more, for the first query compared with "
                "itself"
            )
        return f"Layer {better.name!r} explains {100 * better.coverage:.0f} % of the similarity of a query to itself"


def _ratio(part: Tensor, whole: Tensor) -> Tensor:
    """``part / whole``; NaN where the whole is zero."""
    return torch.where(whole == 0, torch.nan, part / torch.where(whole == 0, 1.0, whole))
