"""The base class of the layer methods that explain a similarity: from the inputs and the support to the maps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, TypeVar, overload

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
from captum_fam.attr.details import AttributionDetails, Maps, one_position_in_words
from captum_fam.attr.layer_lookup import resolve_layer
from captum_fam.attr.tokens import TokenGridLike
from captum_fam.attr.views import Views
from captum_fam.similarity import Similarity, SimilarityLike, get_similarity
from captum_fam.support import SimilarityToSupport, Support, support_from_tensor
from captum_fam.support.checks import no_batch_dimension
from captum_fam.support.scores import WRAP_THE_MODEL

Value = TypeVar("Value")


class SimilarityLayerAttribution(LayerAttribution):
    """Base class of the layer methods that explain a similarity.

    A subclass defines :meth:`map_layers`, which makes the maps from a :class:`LayerCall`. This class provides
    ``attribute`` and ``details``. :func:`~captum_fam.register_method` makes a subclass known by a name.

    Args:
        forward_func: an embedding model, ``forward_func(x) -> (B, J)``, or a
            :class:`~captum_fam.SimilarityToSupport`, which has a support, a similarity and a foil already.
        layer: a module, its dotted name in ``forward_func``, or a list of modules and names.
        device_ids: order of the devices of a ``DataParallel`` model that ``forward_func`` runs. Default: None, the
            ``device_ids`` of ``forward_func``.
        similarity: the similarity that the model decides with: a name, a
            :class:`~captum_fam.similarity.Similarity`, or a differentiable function of two batches of embeddings. Leave
            it out for a :class:`~captum_fam.SimilarityToSupport`. Default: "cosine".
        token_grid: rearranges the tensors of the layer into ``(B, N, *spatial)``. Default: None, the tensors have that
            form.

    Raises:
        TypeError: for a layer that is neither a module nor a name, or a SimilarityToSupport inside a DataParallel.
        ValueError: for an empty list of layers, a name that the model does not have, a scripted or traced module, an
            unknown similarity, or a similarity beside a SimilarityToSupport.

    Example:
        >>> class LayerNorm1(SimilarityLayerAttribution):
        ...     '''The sum of absolute activations, which does not depend on the support.'''
        ...
        ...     def map_layers(self, call):
        ...         (tensors,) = call.activations
        ...         return LayerMaps([tuple(tensor.abs().sum(1, keepdim=True) for tensor in tensors)])
        >>> LayerNorm1(model, model.layer4).attribute(queries, support=images).shape
        torch.Size([8, 1, 7, 7])
    """

    needs_support = True
    """Whether ``attribute`` refuses a call without a support."""

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
        model = forward_func.model if isinstance(forward_func, SimilarityToSupport) else forward_func
        modules = (
            resolve_layer(model, layer)
            if isinstance(layer, nn.Module | str)
            else [resolve_layer(model, module_or_name) for module_or_name in layer]
        )
        LayerAttribution.__init__(self, forward_func, modules, device_ids)
        if isinstance(forward_func, SimilarityToSupport):
            if similarity != "cosine":
                raise ValueError("similarity is set by the SimilarityToSupport; give it there")
            self.similarity: Similarity = forward_func.similarity
        else:
            self.similarity = get_similarity(similarity)
        self.token_grid = token_grid

    @property
    def scores(self) -> SimilarityToSupport | None:
        """The forward function where it is a SimilarityToSupport, else None."""
        return self.forward_func if isinstance(self.forward_func, SimilarityToSupport) else None

    @property
    def model(self) -> Callable[..., Any]:
        """The embedding model, without a SimilarityToSupport around it."""
        return self.forward_func if self.scores is None else self.scores.model

    @property
    def layers(self) -> list[nn.Module]:
        """The modules of the explained layers, a list for a single layer too."""
        layers = [self.layer] if isinstance(self.layer, nn.Module | str) else self.layer
        return [resolve_layer(self.model, layer) for layer in layers]

    @overload
    def attribute(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        support: Support | Tensor | None = None,
        target: TargetType = None,
        additional_forward_args: Any = None,
        attribute_to_layer_input: bool = False,
        relu_attributions: bool = False,
        attr_dim_summation: bool = True,
        return_convergence_delta: Literal[False] = False,
    ) -> Maps: ...

    @overload
    def attribute(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        support: Support | Tensor | None = None,
        target: TargetType = None,
        additional_forward_args: Any = None,
        attribute_to_layer_input: bool = False,
        relu_attributions: bool = False,
        attr_dim_summation: bool = True,
        *,
        return_convergence_delta: Literal[True],
    ) -> tuple[Maps, Tensor | list[Tensor]]: ...

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
            support: the images or embeddings that the queries are compared with. Images ``(K, C, H, W)`` of one class,
                shared by the batch; images ``(B, K, C, H, W)``, one set per query; embeddings ``(K, J)`` or
                ``(B, K, J)``; a :class:`~captum_fam.SupportSet` of several classes; a :class:`~captum_fam.MemoryBank`,
                in which each query is compared with its own neighbors; or another :class:`~captum_fam.Support`. The
                support is no part of ``additional_forward_args``, because Captum repeats those together with the
                inputs. Leave the support out where ``forward_func`` is a :class:`~captum_fam.SimilarityToSupport`.
                Default: None.
            target: the class to explain, in any form that Captum takes: an int, a tensor or a list of B ints.
                Default: None, the predicted class of each query.
            additional_forward_args: further arguments of ``forward_func``. Default: None.
            attribute_to_layer_input: explain the input of the layer instead of its output. Default: False.
            relu_attributions: set negative values of the map to zero. The convergence delta is that of the map before.
                Default: False.
            attr_dim_summation: sum the map over the channels. False keeps the share of each channel, for methods whose
                maps have such shares. Default: True.
            return_convergence_delta: also return the sum of the map minus the value that the sum should have, for
                methods whose :meth:`has_convergence_delta` is True. Default: False.

        Returns:
            *Tensor* or *tuple[Tensor, ...]* of **attributions**: ``(B, 1, *spatial)`` with the spatial size of the
            layer, or ``(B, N, *spatial)`` without summation; detached, in float32 or float64. A tuple where the layer
            gives several tensors; a list where ``layer`` is a list. With ``return_convergence_delta`` a pair of the
            attributions and **delta**, ``(B,)``, or a list of deltas for a list of layers.

        Raises:
            ValueError, TypeError: for a support, a layer or an option that does not fit; the message names the
                argument.
            AssertionError: for a target that Captum refuses.
        """
        if return_convergence_delta and not self.has_convergence_delta():
            raise ValueError(f"return_convergence_delta: {self.get_name()} has no convergence delta")
        with collected_notes(2) as notes:  # 2: the frame of logged_attribute lies between this one and the user's
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
        """Compute the maps as :meth:`attribute` does, and keep everything else that the method computed.

        Takes the arguments of :meth:`attribute`, except ``return_convergence_delta``, and raises the same errors.

        Returns:
            The maps with scores, classes, coverage and shares: :class:`AttributionDetails`.
        """
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
        """Refuse repeated noisy inputs of :meth:`attribute` without a target, where there are several classes.

        The arguments are those of :meth:`attribute`. Copies without noise have the class of the clean input and need no
        target.

        Raises:
            ValueError: for noisy copies without a target, where the support has several classes.
        """
        compared = support if self.scores is None else self.scores.support
        n_classes = compared.n_classes if isinstance(compared, Support) else 1
        if target is not None or n_classes == 1 or not self.needs_support:
            return
        # Captum puts the copies of one input side by side: equal neighbors in the batch are copies without noise.
        tensors = format_tensors(inputs)
        is_copy = torch.stack([(tensor[1:] == tensor[:-1]).flatten(1).all(1) for tensor in tensors]).all(0)
        if is_copy.any():
            return
        raise ValueError(
            "target is None, and the inputs are repeated with noise: each noisy copy would be explained for its own "
            f"predicted class of {n_classes} classes. Pass the classes of the clean inputs, "
            "target=scores(inputs).argmax(1)"
        )

    def activations_of(self, run: LayerRun) -> list[tuple[Tensor, ...]]:
        """The tensors of each layer as ``(B, N, *spatial)``.

        A model of several :class:`~captum_fam.Views` has one tensor per view. Each tensor is laid back to the image
        without its transform, and the mean over the views is returned.
        """
        activations = []
        for passes in self.passes_of(run):
            per_view = [tuple(self.lay_back(tensor, view) for tensor in tensors) for view, tensors in passes]
            count = len(per_view)
            activations.append(
                per_view[0] if count == 1 else tuple(sum(tensors) / count for tensors in zip(*per_view, strict=True))
            )
        return activations

    def passes_of(self, run: LayerRun) -> list[list[tuple[int | None, tuple[Tensor, ...]]]]:
        """The number of the view and the tensors as ``(B, N, *spatial)``, for each layer and each view of the input.

        The number is None for a model without :class:`~captum_fam.Views`.

        Raises:
            ValueError: for a tensor that is no grid of positions.
        """
        has_views = isinstance(self.model, Views)
        return [
            [
                (
                    pass_.view if has_views else None,
                    tuple(
                        lay_out(layer, tensor, run.embedding, self.model, self.token_grid) for tensor in pass_.tensors
                    ),
                )
                for pass_ in passes
            ]
            for layer, passes in zip(self.layers, run.passes, strict=True)
        ]

    def lay_back(self, maps: Tensor, view: int | None) -> Tensor:
        """Bring maps of one view to the image without the view's transform.

        Args:
            maps: ``(B, N, *spatial)``, as the layer saw the transformed image.
            view: number of the view; None: the image itself.
        """
        return maps if view is None or not isinstance(self.model, Views) else self.model.lay_back(maps, view)

    def map_layers(self, call: LayerCall) -> LayerMaps:
        """Make the maps of one call.

        Args:
            call: what the model gave for the queries, and the comparison with the support.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define map_layers")

    def recording(self) -> dict[str, Any]:
        """What the forward pass records besides activations and embedding: keyword arguments of ``run_layers``."""
        return {}

    def watching(self, attribute_to_layer_input: bool) -> AbstractContextManager[Any]:
        """A context manager around the forward pass; the value of its ``as`` becomes :attr:`LayerCall.watched`."""
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
        """Compute the details as :meth:`details` does, without issuing warnings.

        The texts of the warnings are added to ``notes``. The other arguments are those of :meth:`attribute`.
        """
        call = self.run(
            inputs, support, target, additional_forward_args, attribute_to_layer_input, attr_dim_summation, notes
        )
        return self.details_of(call, relu_attributions)

    def details_of(self, call: LayerCall, relu_attributions: bool = False) -> AttributionDetails:
        """Make the maps of a call, and collect everything else that the method computed.

        Args:
            call: the result of :meth:`run`.
            relu_attributions: set negative values of the map to zero. Default: False.
        """
        result = self.map_layers(call)
        is_list = not isinstance(self.layer, nn.Module | str)
        return AttributionDetails(
            attributions=self._format(call, result, relu_attributions),
            comparison=None if call.embedded is None else call.comparison,
            contributions=result.contributions,
            convergence_delta=_per_layer(result.convergence_deltas, is_list),
            coverage=_per_layer(result.coverages, is_list),
            shares=_per_layer(result.shares, is_list),
            standard_error=result.standard_error,
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
        """Embed the support and run the model once.

        The arguments are those of :meth:`attribute`; the texts of warnings are added to ``notes``.

        Raises:
            ValueError, TypeError: as :meth:`attribute`.
        """
        formatted = format_tensors(inputs)
        args = format_additional_forward_args(additional_forward_args)
        if formatted[0].numel() == 0:
            raise ValueError(f"inputs is an empty batch, shape {tuple(formatted[0].shape)}")
        notes = [] if notes is None else notes
        notes += filter(None, [training_mode_in_words(self.model)])
        checked_support = self._check_support(support, formatted)
        embedded = self._embed(checked_support, formatted, args)
        with self.watching(attribute_to_layer_input) as watched:
            run = self.run_model(formatted, args, attribute_to_layer_input, notes)
        return LayerCall(
            self,
            formatted,
            args,
            checked_support,
            embedded,
            target,
            attribute_to_layer_input,
            attr_dim_summation,
            run,
            notes,
            watched,
        )

    def run_model(
        self,
        inputs: tuple[Tensor, ...],
        args: tuple[Any, ...] | None,
        attribute_to_layer_input: bool,
        notes: list[str],
        keep_graph: bool = False,
    ) -> LayerRun:
        """Run the model once, record what the method needs, and check the result.

        Args:
            inputs: the tensors of the queries.
            args: further arguments of the model.
            attribute_to_layer_input: keep the inputs of the layers instead of the outputs.
            notes: receives the texts of warnings.
            keep_graph: whether the ways back can be gone several times. Default: False.

        Raises:
            ValueError, TypeError: as :meth:`attribute`.
        """
        run = run_layers(
            self.model,
            inputs,
            self.layers,
            args,
            attribute_to_layer_input,
            self.device_ids,
            keep_graph=keep_graph,
            **self.recording(),
        )

        # Only for tokens whose shape does not show which dimension is the batch.
        def run_alone(layer: nn.Module) -> LayerRun:
            first = tuple(tensor[:1] for tensor in inputs)
            return run_layers(self.model, first, [layer], args, attribute_to_layer_input, self.device_ids)

        check_batch_first(run, self.layers, self.token_grid, run_alone)
        if not run.embedding.isfinite().all():
            raise ValueError("inputs: the embedding of the query contains NaN or inf")
        notes += filter(None, [square_grid_in_words(run, inputs[0], self.token_grid)])
        return run

    def call_of_run(
        self,
        run: LayerRun,
        inputs: tuple[Tensor, ...],
        args: tuple[Any, ...] | None,
        support: Support | Tensor | None,
        target: TargetType,
        notes: list[str],
    ) -> LayerCall:
        """The call that :meth:`run` would give, made from a run of the model that was kept.

        Args:
            run: the forward pass of the inputs, which has recorded what :meth:`recording` asks for.
            inputs: the tensors of the queries.
            args: further arguments of the model.
            support: the support of :meth:`attribute`.
            target: the target of :meth:`attribute`.
            notes: receives the texts of warnings.

        Raises:
            ValueError, TypeError: as :meth:`attribute`.
        """
        checked_support = self._check_support(support, inputs)
        embedded = self._embed(checked_support, inputs, args)
        return LayerCall(self, inputs, args, checked_support, embedded, target, False, True, run, notes)

    def _check_support(self, support: Support | Tensor | None, inputs: tuple[Tensor, ...]) -> Support | None:
        """The support of the call or of the SimilarityToSupport, before its images are embedded."""
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
            # A convolution takes a query (C, H, W) without a batch dimension. With as many supports as channels, the
            # support (K, C, H, W) then looks like one set per query.
            raise ValueError(no_batch_dimension(inputs[0], images)) from error

    def _format(self, call: LayerCall, result: LayerMaps, relu_attributions: bool) -> Maps:
        """The maps in Captum's form, after a look at what the method gave."""
        name, batch = type(self).__name__, len(call.run.embedding)
        if not isinstance(result, LayerMaps) or len(result.maps) != len(call.run.passes):
            raise TypeError(
                f"map_layers of {name} must return LayerMaps with maps for each of {len(self.layers)} layers"
            )
        for maps in result.maps:
            for tensor in maps if isinstance(maps, tuple) else ():
                if tensor.dim() < 3 or len(tensor) != batch:
                    raise ValueError(
                        f"map_layers of {name} gave a map of shape {tuple(tensor.shape)}, expected (B, 1, *spatial) or "
                        f"(B, N, *spatial) with B = {batch}"
                    )
                if not tensor.isfinite().all():
                    raise ValueError("layer: its activation, or the map that is made of it, contains NaN or inf")
                call.notes.extend(filter(None, [one_position_in_words(tensor, call.inputs[0])]))
            if not isinstance(maps, tuple):
                raise TypeError(
                    f"map_layers of {name} must give a tuple of tensors per layer, got {type(maps).__name__}"
                )
        layers = [tuple(tensor.detach() for tensor in tensors) for tensors in result.maps]
        if relu_attributions:
            layers = [tuple(tensor.relu() for tensor in tensors) for tensors in layers]
        outputs: list[Any] = [format_output(len(tensors) > 1, tensors) for tensors in layers]
        return outputs[0] if isinstance(self.layer, nn.Module | str) else outputs


def _per_layer(values: list[Value] | None, is_list: bool) -> Any:
    """The values as the user asked for them: a list for a list of layers, else the value of the one layer."""
    return values if values is None or is_list else values[0]
