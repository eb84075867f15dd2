"""What all layer methods of a similarity share: ``attribute``, from the inputs and the support to the maps."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch
from captum.attr import LayerAttribution
from torch import Tensor, nn

from captum_fam._captum import TargetType, format_additional_forward_args, format_output, format_tensors
from captum_fam._training_mode import training_mode_in_words
from captum_fam._warnings import collected_notes
from captum_fam.attr._grids import check_batch_first, lay_out, square_grid_in_words
from captum_fam.attr._layer_run import LayerRun, run_layers
from captum_fam.attr._repeated import logged_attribute
from captum_fam.attr.call import LayerCall, LayerMaps
from captum_fam.attr.details import AttributionDetails, Maps
from captum_fam.attr.layer_lookup import resolve_layer
from captum_fam.attr.tokens import TokenGridLike
from captum_fam.attr.views import Views
from captum_fam.similarity import Similarity, SimilarityLike, get_similarity
from captum_fam.support import SimilarityToSupport, Support, support_from_tensor
from captum_fam.support.checks import no_batch_dimension
from captum_fam.support.scores import WRAP_THE_MODEL

Value = TypeVar("Value")


class SimilarityLayerAttribution(LayerAttribution):
    """Base of the layer methods that explain a similarity.

    A method defines :meth:`map_layers`, from a :class:`LayerCall` to the maps; ``attribute`` and ``details`` are
    written here once. A method of your own is a subclass with that one function, made known by
    :func:`~captum_fam.register_method`.

    Args:
        forward_func: an embedding model, ``forward_func(x) -> (B, J)``, or a
            :class:`~captum_fam.SimilarityToSupport`, which brings its support, similarity and foil.
        layer: a module, its dotted name in ``forward_func``, or a list of these.
        device_ids: order of the devices, where ``forward_func`` runs a DataParallel model of its own.
        similarity: the measure the model decides with.
        token_grid: rearranges the tensors of the layer into ``(B, N, *spatial)``; default: channels first.

    Raises:
        TypeError: for a layer that is no module or name, or a SimilarityToSupport inside a DataParallel.
        ValueError: for a name that the model does not have, or a similarity beside a SimilarityToSupport.

    Example:
        >>> class LayerNorm1(SimilarityLayerAttribution):
        ...     '''The sum of absolute activations, which knows nothing of the support.'''
        ...
        ...     def map_layers(self, call):
        ...         (tensors,) = call.activations
        ...         return LayerMaps([tuple(tensor.abs().sum(1, keepdim=True) for tensor in tensors)])
        >>> LayerNorm1(model, model.layer4).attribute(queries, support=images).shape
        torch.Size([8, 1, 7, 7])
    """

    needs_support = True
    """Whether a call without a support is refused."""

    def __init__(
        self,
        forward_func: Callable[..., Any],
        layer: nn.Module | str | Sequence[nn.Module | str],
        device_ids: list[int] | None = None,
        *,
        similarity: SimilarityLike = "cosine",
        token_grid: TokenGridLike | None = None,
    ) -> None:
        if isinstance(forward_func, nn.DataParallel) and isinstance(forward_func.module, SimilarityToSupport):
            raise TypeError(f"forward_func: {WRAP_THE_MODEL}")
        if not isinstance(layer, nn.Module | str) and not len(layer):
            raise ValueError("layer is an empty list; pass at least one module or name")
        owner = forward_func.model if isinstance(forward_func, SimilarityToSupport) else forward_func
        resolved = (
            resolve_layer(owner, layer)
            if isinstance(layer, nn.Module | str)
            else [resolve_layer(owner, one) for one in layer]
        )
        LayerAttribution.__init__(self, forward_func, resolved, device_ids)
        if isinstance(forward_func, SimilarityToSupport):
            if similarity != "cosine":
                raise ValueError("similarity is set by the SimilarityToSupport; give it there")
            self.similarity: Similarity = forward_func.similarity
        else:
            self.similarity = get_similarity(similarity)
        self.token_grid = token_grid

    @property
    def scores(self) -> SimilarityToSupport | None:
        """The forward function, where it brings its support."""
        return self.forward_func if isinstance(self.forward_func, SimilarityToSupport) else None

    @property
    def model(self) -> Callable[..., Any]:
        """The embedding model."""
        return self.forward_func if self.scores is None else self.scores.model

    @property
    def layers(self) -> list[nn.Module]:
        """The explained layers."""
        layers = [self.layer] if isinstance(self.layer, nn.Module | str) else self.layer
        return [resolve_layer(self.model, layer) for layer in layers]

    @logged_attribute
    def attribute(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        support: Support | Tensor | None = None,
        target: TargetType = None,
        additional_forward_args: Any = None,
        attribute_to_layer_input: bool = False,
        relu_attributions: bool = False,
        attr_dim_summation: bool = True,
        return_convergence_delta: bool = False,
    ) -> Any:
        """Compute the map of every query.

        Args:
            inputs: queries, ``(B, C, H, W)``, or a tuple of the model's input tensors.
            support: what the queries are compared with, travelling outside ``additional_forward_args`` because Captum
                repeats those. Images ``(K, C, H, W)`` of one class shared by the batch; ``(B, K, C, H, W)``, one set
                per query; embeddings ``(K, J)`` or ``(B, K, J)``; a :class:`~captum_fam.SupportSet` of several classes;
                a :class:`~captum_fam.MemoryBank`, of which each query is compared with its own neighbors; or another
                :class:`~captum_fam.Support`. Left out when ``forward_func`` is a
                :class:`~captum_fam.SimilarityToSupport`.
            target: the class to explain, in any form that Captum takes: an int, a tensor or list of B ints.
                Default: the predicted class of each query.
            additional_forward_args: further arguments of ``forward_func``.
            attribute_to_layer_input: explain the input of the layer instead of its output.
            relu_attributions: cut negative values of the map at zero, after a delta was taken.
            attr_dim_summation: sum over the channels; False keeps the share of each channel, where a method has it.
            return_convergence_delta: also return how far the map's sum is from what it is to sum to, for methods with
                :meth:`has_convergence_delta`.

        Returns:
            *Tensor* or *tuple[Tensor, ...]* of **attributions**, ``(B, 1, *spatial)`` of the layer, or
            ``(B, N, *spatial)`` without summation; detached, in float32 at least. A tuple where the layer
            gives several tensors; a list where ``layer`` is one. With ``return_convergence_delta`` a pair with
            **delta**, ``(B,)``; a list for a list of layers.

        Raises:
            ValueError, TypeError: for a support, layer or option that does not fit; the message says which.
            AssertionError: for a target that Captum refuses.
        """
        if return_convergence_delta and not self.has_convergence_delta():
            raise ValueError(f"return_convergence_delta: {self.get_name()} has no convergence delta")
        with collected_notes(2) as notes:  # between here and the user stands what logs the call
            details = self.noted_details(
                notes,
                inputs,
                support,
                target,
                additional_forward_args,
                attribute_to_layer_input,
                relu_attributions,
                attr_dim_summation,
            )
        return (details.attributions, details.convergence_delta) if return_convergence_delta else details.attributions

    def details(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        support: Support | Tensor | None = None,
        target: TargetType = None,
        additional_forward_args: Any = None,
        attribute_to_layer_input: bool = False,
        relu_attributions: bool = False,
        attr_dim_summation: bool = True,
    ) -> AttributionDetails:
        """As :meth:`attribute`, with scores, classes and what else the method computed beside the maps."""
        with collected_notes(1) as notes:
            return self.noted_details(
                notes,
                inputs,
                support,
                target,
                additional_forward_args,
                attribute_to_layer_input,
                relu_attributions,
                attr_dim_summation,
            )

    def require_target(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        support: Support | Tensor | None = None,
        target: TargetType = None,
        *args: object,
        **kwargs: object,
    ) -> None:
        """Refuse repeated inputs of :meth:`attribute` without a target, where there are several classes.

        Copies without noise have the class of the clean input, and need no target.

        Raises:
            ValueError: for these.
        """
        given = support if self.scores is None else self.scores.support
        n_classes = given.n_classes if isinstance(given, Support) else 1
        if target is not None or n_classes == 1 or not self.needs_support:
            return
        tensors = format_tensors(inputs)
        same = torch.stack([(one[1:] == one[:-1]).flatten(1).all(1) for one in tensors]).all(0)
        if same.any():
            return
        raise ValueError(
            "target is None, and the inputs are repeated with noise: each copy would be explained for the class of "
            f"{n_classes} that it is predicted as. Pass that of the clean inputs, target=scores(inputs).argmax(1)"
        )

    def activations_of(self, run: LayerRun) -> list[tuple[Tensor, ...]]:
        """The layers' tensors as ``(B, N, *spatial)``; of several views of the input their mean, laid back."""
        activations = []
        for passes in self.passes_of(run):
            laid_back = [tuple(self.lay_back(tensor, view) for tensor in tensors) for view, tensors in passes]
            count = len(laid_back)
            activations.append(
                laid_back[0] if count == 1 else tuple(sum(each) / count for each in zip(*laid_back, strict=True))
            )
        return activations

    def passes_of(self, run: LayerRun) -> list[list[tuple[int | None, tuple[Tensor, ...]]]]:
        """For each layer and each view of the input: the number of the view and the tensors as ``(B, N, *spatial)``."""
        of_views = isinstance(self.model, Views)
        return [
            [
                (
                    one.view if of_views else None,
                    tuple(lay_out(layer, tensor, run.embedding, self.model, self.token_grid) for tensor in one.tensors),
                )
                for one in passes
            ]
            for layer, passes in zip(self.layers, run.passes, strict=True)
        ]

    def lay_back(self, maps: Tensor, view: int | None) -> Tensor:
        """Maps of a view, in the place of the image itself."""
        return maps if view is None or not isinstance(self.model, Views) else self.model.lay_back(maps, view)

    @abstractmethod
    def map_layers(self, call: LayerCall) -> LayerMaps:
        """The maps of one call."""

    def recording(self) -> dict[str, Any]:
        """What the forward pass records besides activations and embedding: arguments of ``run_layers``."""
        return {}

    def watching(self, attribute_to_layer_input: bool) -> AbstractContextManager[Any]:
        """Stands around the forward pass; what it gives is :attr:`LayerCall.watched`."""
        return nullcontext()

    def noted_details(
        self,
        notes: list[str],
        inputs: Tensor | tuple[Tensor, ...],
        support: Support | Tensor | None = None,
        target: TargetType = None,
        additional_forward_args: Any = None,
        attribute_to_layer_input: bool = False,
        relu_attributions: bool = False,
        attr_dim_summation: bool = True,
    ) -> AttributionDetails:
        """As :meth:`details`, without a warning: what the user is to know is added to ``notes``."""
        call = self.run(
            inputs, support, target, additional_forward_args, attribute_to_layer_input, attr_dim_summation, notes
        )
        made = self.map_layers(call)
        is_list = not isinstance(self.layer, nn.Module | str)
        return AttributionDetails(
            attributions=self._format(made.maps, relu_attributions),
            comparison=None if call.embedded is None else call.comparison,
            contributions=made.contributions,
            convergence_delta=_per_layer(made.convergence_deltas, is_list),
            coverage=_per_layer(made.coverages, is_list),
            shares=_per_layer(made.shares, is_list),
            standard_error=made.standard_error,
            detected=[way.detected for way in call.run.ways] or None,
        )

    def run(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        support: Support | Tensor | None,
        target: TargetType,
        additional_forward_args: Any,
        attribute_to_layer_input: bool,
        attr_dim_summation: bool = True,
        notes: list[str] | None = None,
    ) -> LayerCall:
        """Embed the support and run the model once."""
        formatted = format_tensors(inputs)
        args = format_additional_forward_args(additional_forward_args)
        if formatted[0].numel() == 0:
            raise ValueError(f"inputs is an empty batch, shape {tuple(formatted[0].shape)}")
        notes = [] if notes is None else notes
        notes += filter(None, [training_mode_in_words(self.model)])
        given = self._given_support(support, formatted)
        embedded = self._embed(given, formatted, args)
        with self.watching(attribute_to_layer_input) as watched:
            run = run_layers(
                self.model, formatted, self.layers, args, attribute_to_layer_input, self.device_ids, **self.recording()
            )

        def run_alone(layer: nn.Module) -> LayerRun:
            first = tuple(tensor[:1] for tensor in formatted)
            return run_layers(self.model, first, [layer], args, attribute_to_layer_input, self.device_ids)

        check_batch_first(run, self.layers, self.token_grid, run_alone)
        if not run.embedding.isfinite().all():
            raise ValueError("inputs: the embedding of the query contains NaN or inf")
        notes += filter(None, [square_grid_in_words(run, formatted[0], self.token_grid)])
        return LayerCall(
            self,
            formatted,
            args,
            given,
            embedded,
            target,
            attribute_to_layer_input,
            attr_dim_summation,
            run,
            notes,
            watched,
        )

    def _given_support(self, support: Support | Tensor | None, inputs: tuple[Tensor, ...]) -> Support | None:
        if self.scores is not None:
            if support is not None and self.needs_support:
                raise ValueError(
                    "support is set by the SimilarityToSupport; leave it out here, or explain the model itself"
                )
            return self.scores.support
        if not self.needs_support:
            return None
        if support is None:
            raise ValueError(
                "support is missing: pass images or embeddings to compare with, a SupportSet or any other Support"
            )
        return support if isinstance(support, Support) else support_from_tensor(support, inputs)

    def _embed(
        self, support: Support | None, inputs: tuple[Tensor, ...], args: tuple[Any, ...] | None
    ) -> Support | None:
        if self.scores is not None:
            return self.scores.embedded()
        if support is None:
            return None
        support.check_queries(inputs, args)
        try:
            return support.embed(self.model, args)
        except RuntimeError as error:
            images = getattr(support, "inputs", inputs[0])
            if images.shape[1:] != inputs[0].shape:
                raise
            # A convolution takes a single image too, and as many channels as supports look like a set per query.
            raise ValueError(no_batch_dimension(inputs[0], images)) from error

    def _format(self, maps: list[tuple[Tensor, ...]], relu_attributions: bool) -> Maps:
        for tensors in maps:
            for one in tensors:
                if not one.isfinite().all():
                    raise ValueError("layer: its activation contains NaN or inf")
        if relu_attributions:
            maps = [tuple(one.relu() for one in tensors) for tensors in maps]
        outputs: list[Any] = [format_output(len(tensors) > 1, tensors) for tensors in maps]
        return outputs[0] if isinstance(self.layer, nn.Module | str) else outputs


def _per_layer(values: list[Value] | None, is_list: bool) -> Any:
    """One value for one layer, a list for a list of layers."""
    return values if values is None or is_list else values[0]
