"""Cuts any model behind a layer: the first part stops at the layer, the second part replaces the layer's output.

Models of Hugging Face and open_clip, which ``torch.fx`` does not trace, are cut in this way. The second part runs the
whole model on an empty image, so that it takes the time of the first part too. Behind the patch embedding of a
transformer this is next to nothing.
"""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import Tensor, nn

from captum_fam.embedding.forward import check_embedding
from captum_fam.experiments.traced_cut import BypassError


def cut_by_replacing(
    model: nn.Module, layer: str, probe: Tensor, sequence_first: bool = False
) -> tuple[UpToLayer, FromLayer]:
    """Cut a model behind a layer, without a look at its code.

    Args:
        model: module that takes one tensor of images ``(B, C, H, W)``.
        layer: dotted name of a module that runs once and gives one tensor.
        probe: two images, ``(2, C, H, W)``.
        sequence_first: whether the layer gives tokens ``(T, B, N)``; the parts exchange ``(B, T, N)``. Default: False.

    Returns:
        Two modules: from images to the output of the layer, and from this output to the output of the model. Both hold
        the whole model.

    Raises:
        BypassError: if the output of the model does not follow from the output of the layer alone.

    Example:
        >>> network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Flatten())
        >>> first, second = cut_by_replacing(network, "0", torch.rand(2, 3, 5, 5))
        >>> second(first(torch.rand(6, 3, 5, 5))).shape
        torch.Size([6, 36])
    """
    sizes = _ImageSizes()
    first = UpToLayer(model, layer, sizes, sequence_first)
    second = FromLayer(model, layer, sizes, sequence_first)
    with torch.no_grad():
        expected, activation = _as_tensor(model(probe)), first(probe)
        made = second(activation.clone())
    # The image of the second part is another one than the probe.
    is_same = made.shape == expected.shape and torch.allclose(made, expected, rtol=1e-4, atol=1e-6)
    if not is_same or _reaches_around(second, activation, probe):
        raise BypassError("the modules behind it also take other tensors, or do not take its output")
    return first, second


class _Half(nn.Module):
    """A part of a model, before or behind a layer."""

    def __init__(self, model: nn.Module, layer: str, sizes: _ImageSizes, sequence_first: bool = False) -> None:
        super().__init__()
        self.model = model
        self.layer = layer
        self.sequence_first = sequence_first
        self._sizes = sizes


class UpToLayer(_Half):
    """The part of a model from images to the output of a layer; the modules behind the layer do not run.

    Args:
        model: module that takes one tensor of images.
        layer: dotted name of the layer in the model.
        sizes: sizes of the images behind each activation, for :class:`FromLayer`.
        sequence_first: whether the layer gives tokens ``(T, B, N)``, which are returned as ``(B, T, N)``. Default:
            False.
    """

    def forward(self, images: Tensor) -> Tensor:
        thread = threading.get_ident()

        def stop(_: nn.Module, __: Any, output: Any) -> None:
            if threading.get_ident() == thread:
                raise _Reached(_unwrap(output))

        handle = self.model.get_submodule(self.layer).register_forward_hook(stop)
        try:
            self.model(images)
        except _Reached as reached:
            activation = reached.activation
        finally:
            handle.remove()
        activation = activation.transpose(0, 1) if self.sequence_first else activation
        self._sizes.by_activation[activation.shape[1:]] = images.shape[1:]
        return activation


class FromLayer(_Half):
    """The part of a model from the output of a layer to the output of the model.

    Args:
        model: module that takes one tensor of images.
        layer: dotted name of the layer in the model.
        sizes: sizes of the images behind each activation, which :class:`UpToLayer` notes.
        sequence_first: whether the layer gives tokens ``(T, B, N)``; activations come as ``(B, T, N)``. Default: False.
    """

    def forward(self, activation: Tensor) -> Tensor:
        size = self._sizes.by_activation.get(activation.shape[1:])
        if size is None:
            raise ValueError(
                f"activation has shape {tuple(activation.shape)}, which no image gave so far; run the first part of "
                "the model on an image of the size first"
            )
        # Models ask an image for its size, also behind the layer; none of its pixels gets there.
        return self.run(activation, activation.new_zeros(1, *size).expand(len(activation), *size))

    def run(self, activation: Tensor, images: Tensor) -> Tensor:
        """Run the model on images, with an activation in the place of the output of the layer.

        Args:
            activation: ``(B, N, h, w)``, ``(B, T, N)`` or ``(B, h, w, N)``.
            images: ``(B, C, H, W)``.

        Returns:
            The output of the model.
        """
        thread = threading.get_ident()
        replacement = activation.transpose(0, 1) if self.sequence_first else activation

        def replace(_: nn.Module, __: Any, output: Any) -> Any:
            if threading.get_ident() != thread:
                return None
            return type(output)([replacement]) if isinstance(output, tuple | list) else replacement

        handle = self.model.get_submodule(self.layer).register_forward_hook(replace)
        try:
            return _as_tensor(self.model(images))
        finally:
            handle.remove()


class _ImageSizes:
    """The shape of the images behind each shape of an activation; the parts of a model and their copies share it."""

    def __init__(self) -> None:
        self.by_activation: dict[torch.Size, torch.Size] = {}

    def __deepcopy__(self, memo: object) -> _ImageSizes:
        return self


class _Reached(BaseException):
    """Ends a pass at the layer. No ``except Exception`` of a model stops it."""

    def __init__(self, activation: Tensor) -> None:
        super().__init__()
        self.activation = activation


def _as_tensor(output: object) -> Tensor:
    """The output of a model: a tensor, or the embedding in an output object."""
    return output if isinstance(output, Tensor) else check_embedding(output)


def _unwrap(output: Any) -> Tensor:
    """The tensor of a layer that may give a tuple or list of one tensor."""
    tensor: Tensor = output[0] if isinstance(output, tuple | list) else output
    return tensor


def _reaches_around(second: FromLayer, activation: Tensor, probe: Tensor) -> bool:
    """Whether a gradient of the output reaches the image although the output of the layer is fixed."""
    with torch.enable_grad():
        image = probe[:1].clone().requires_grad_()
        output = second.run(activation[:1], image)
        if not output.requires_grad:
            return False
        # Unequal weights: behind a normalization the plain sum has no gradient.
        weights = torch.linspace(-1, 1, output.numel(), dtype=output.dtype, device=output.device)
        (gradient,) = torch.autograd.grad(output.flatten() @ weights, image, allow_unused=True)
    return gradient is not None and bool(gradient.any())
