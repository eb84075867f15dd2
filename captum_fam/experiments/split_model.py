"""A model in two parts: up to the activation that is explained, and from there to the embedding.

Images go through the backbone once; every method and measure then works on the tail, whose input is the activation.
"""

from __future__ import annotations

import copy
import difflib
import hashlib
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.optimization import fuse
from torchvision.transforms import Normalize

from captum_fam.attr.tokens import looks_channels_last
from captum_fam.demo.network import load_demo_network
from captum_fam.experiments.linear_head import load_head
from captum_fam.functional import unit
from captum_fam.geometry import Geometry, ResizeCrop, Squash
from captum_fam.images import IMAGENET_MEAN, IMAGENET_STD
from captum_fam.models import EmbeddingModel, create_model, list_models
from captum_fam.models.registry import full_name
from captum_fam.pooling import GAP, GMP, LSE, GeM

Framing = Literal["squash", "crop"]
POOLINGS: dict[str, Callable[[], nn.Module]] = {"gap": GAP, "gmp": GMP, "lse": LSE, "gem": GeM}

_CPU_CHUNK = 8


class Tail(nn.Module):
    """From the activation to the embedding: what is left of the network, pooling, then a head.

    ``tail.activation`` is the layer to explain, so that a method is made as ``LayerFAM(tail, tail.activation)`` and
    takes activations for its inputs. Of a network that is cut before its pooled layer, ``tail.rest`` gives that layer's
    output, and the modules between go by their names in the network: ``"rest.features.10"``.

    Args:
        pooling: ``(B, N, h, w)`` -> ``(B, N)``.
        head: ``(B, N)`` -> ``(B, J)``; None leaves the pooled activation.
        rest: from the activation to what is pooled; None: the activation itself is.
    """

    def __init__(self, pooling: nn.Module, head: nn.Module | None = None, rest: nn.Module | None = None) -> None:
        super().__init__()
        self.activation = nn.Identity()
        self.rest = rest
        self.pooling = pooling
        self.head = nn.Identity() if head is None else head

    def forward(self, activation: Tensor) -> Tensor:
        activation = self.activation(activation)
        if self.rest is not None:
            # Its first module may work in place, and what is explained must stay as it is.
            activation = self.rest(activation.clone())
        embedding: Tensor = self.head(self.pooling(activation))
        return embedding


class TwoPartModel(nn.Module):
    """An embedding model, cut at the activation that is explained, with what has to be done to its images.

    Args:
        backbone: images ``(B, 3, H, W)`` -> activation ``(B, N, h, w)``.
        pooling: ``(B, N, h, w)`` -> ``(B, N)``, such as :class:`~captum_fam.pooling.GAP`.
        head: ``(B, N)`` -> ``(B, J)``, or None.
        size: side of the square that images are brought to.
        mean: of the RGB channels in [0, 1], taken off.
        std: that they are divided by.
        interpolation: of the resizing, ``"bilinear"`` or ``"bicubic"``.
        similarity: the measure that the model decides with, by name.
        framing: ``"squash"`` the whole image to the square, or resize its shorter side and ``"crop"`` the center.
        evaluation_crop: of a crop, the shorter side after resizing and the side that is cut out, None: 256 and 224;
            another ``size`` keeps their ratio.
        rest: from the activation to what is pooled, where the network is cut before that.

    Example:
        >>> net = torchvision.models.resnet18(weights="DEFAULT").eval()
        >>> model = TwoPartModel(torch.nn.Sequential(*list(net.children())[:-2]), GAP())
        >>> model(torch.rand(2, 3, 224, 224)).shape
        torch.Size([2, 512])
    """

    def __init__(
        self,
        backbone: nn.Module,
        pooling: nn.Module,
        head: nn.Module | None = None,
        *,
        size: int = 224,
        mean: tuple[float, ...] = IMAGENET_MEAN,
        std: tuple[float, ...] = IMAGENET_STD,
        interpolation: str = "bilinear",
        similarity: str = "cosine",
        framing: Framing = "squash",
        evaluation_crop: tuple[int, int] | None = None,
        rest: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.tail = Tail(pooling, head, rest)
        self.size = size
        self.mean = mean
        self.std = std
        self.interpolation = interpolation
        self.similarity = similarity
        self.framing: Framing = framing
        self.evaluation_crop = evaluation_crop

    def forward(self, images: Tensor) -> Tensor:
        embedding: Tensor = self.tail(self.backbone(images))
        return embedding

    @torch.no_grad()
    def activation(self, images: Tensor) -> Tensor:
        """The backbone's output, ``(B, 3, H, W)`` -> ``(B, N, h, w)`` in float32, on the model's device."""
        # On a CPU few images at a time, whose activations stay in its cache, take half as long as many.
        chunks = images.to(self.device).split(_CPU_CHUNK if self.device.type == "cpu" else len(images))
        return torch.cat(
            [self.backbone(chunk.contiguous(memory_format=torch.channels_last)) for chunk in chunks]
        ).float()

    @property
    def geometry(self) -> Geometry:
        """What a dataset does to pixels and boxes.

        Raises:
            ValueError: for an unknown framing.
        """
        if self.framing not in get_args(Framing):
            raise ValueError(f'framing must be "squash" or "crop", got {self.framing!r}')
        if self.framing == "squash":
            return Squash(self.size, self.interpolation)
        resize, crop = self.evaluation_crop or (256, 224)
        return ResizeCrop(round(self.size * resize / crop), self.size, self.interpolation)

    @property
    def normalize(self) -> Callable[[Tensor], Tensor]:
        """What a dataset does to the image of that geometry, in [0, 1]."""
        return Normalize(self.mean, self.std)

    @property
    def device(self) -> torch.device:
        return next((tensor.device for tensor in self.parameters()), torch.device("cpu"))

    def fast_copy(self, device: torch.device | str = "cpu") -> TwoPartModel:
        """The same model for inference: eval mode, frozen, channels last, batch normalization folded away.

        Embeddings are the same up to rounding. A backbone that ``torch.fx`` cannot trace, or that comes out of it
        with other values, is copied as it is.
        """
        model = copy.deepcopy(self).eval().requires_grad_(False).to("cpu")
        probe = _probe(self.size)
        with torch.no_grad():
            expected = model.backbone(probe)
            try:
                # In place, because copies of traced modules come back in training mode, as what is traced does.
                fused = fuse(model.backbone, inplace=True).eval()
                same = torch.allclose(fused(probe), expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
            except Exception:  # tracing fails in as many ways as there are models
                same = False
        if same:
            model.backbone = fused
        return model.to(device).to(memory_format=torch.channels_last)

    def weights_hash(self) -> str:
        """SHA-256 of all parameters and buffers, with their names."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()


def split_model(net: EmbeddingModel, layer: str | None = None) -> TwoPartModel:
    """Cut an embedding model at the layer that its pooling takes, or at another.

    A normalization at the end is left out where the similarity is the cosine, which does not see it.

    Args:
        net: as :func:`~captum_fam.models.create_model` gives it; ``torch.fx`` must be able to trace it, unless it
            begins with that layer under the name ``features``, as the networks of the paper do.
        layer: dotted name of a module in ``net.model`` with output ``(B, N, h, w)``; ``torch.fx`` must be able to trace
            the modules that it lies in, all others run as they are. None: that which the pooling takes.

    Raises:
        ValueError: if the embedding is not made of the layer's output alone, or the model cannot be cut there; the
            message says why and what to do.

    Example:
        >>> model = split_model(create_model("squeezenet1_0"), "features.5")
        >>> activation = model.backbone(torch.rand(2, 3, 224, 224))
        >>> activation.shape, model.tail.rest(activation).shape
        (torch.Size([2, 256, 54, 54]), torch.Size([2, 512, 13, 13]))
    """
    pooling, head, end = net.pooling, net.head, net.layer if net.token_grid is None else None
    if pooling is None or end is None:
        if layer is None:
            raise ValueError(
                f"model {net.name}: its embedding is no pooling of layer {net.layer!r}; it cannot be cut there unless "
                "the layer is named (--layer, or layer= in Python), and gives (B, N, h, w)"
            )
        # What of the model is pooling and what head is not known: all of it is the rest.
        pooling, head, end = nn.Identity(), None, None
    layer = layer or net.layer
    probe = _probe(net.size)
    backbone: nn.Module
    rest: nn.Module | None = None
    if layer == end == "features":
        backbone = net.layer_module
    else:
        backbone, rest = _cut(net.model, layer, end, probe, net.name)
    parts = TwoPartModel(
        backbone,
        pooling,
        head,
        size=net.size,
        mean=net.mean,
        std=net.std,
        interpolation=net.interpolation,
        similarity=net.similarity,
        evaluation_crop=net.evaluation_crop,
        rest=rest if layer != end else None,
    ).eval()
    with torch.inference_mode():
        whole, again = net.model(probe), parts(probe)
    if net.similarity == "cosine":
        whole, again = unit(whole), unit(again)
    if not _same(again, whole):
        raise ValueError(f"model {net.name}: what follows layer {layer!r} does not make its embedding of it")
    return parts


def _probe(size: int) -> Tensor:
    return torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))


def _same(made: Tensor, expected: Tensor) -> bool:
    return made.shape == expected.shape and torch.allclose(made, expected, rtol=1e-3, atol=1e-5)


def _cut(
    model: nn.Module, layer: str, end: str | None, probe: Tensor, name: str
) -> tuple[fx.GraphModule, fx.GraphModule]:
    """Two modules: from a model's input to a layer's output, and from there to that of another, or of the model.

    They share the model's modules, under the same names.

    Args:
        model: takes one tensor.
        layer: dotted name of the module to cut behind.
        end: dotted name of the module to go to; None: to the end.
        probe: an input.
        name: of the model, for messages.
    """

    def refuse(reason: str) -> ValueError:
        return ValueError(f"model {name} cannot be cut at layer {layer!r}: {reason}")

    modules = dict(model.named_modules())
    if not layer or layer not in modules:
        close = difflib.get_close_matches(layer, modules) or [child for child, _ in model.named_children()]
        raise refuse(f"it is no module of the model; there are {', '.join(close)}")
    outputs = _outputs(model, modules[layer], probe)
    if len(outputs) != 1:
        raise refuse(f"it runs {len(outputs)} times; choose one that runs once")
    (output,) = outputs
    if not isinstance(output, Tensor) or output.dim() != 4:
        got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise refuse(f"it gives {got}, and the protocols take (B, N, h, w); choose a layer of feature maps")
    if looks_channels_last([modules[layer], model], output, output.shape[1]):
        raise refuse(f"it gives {tuple(output.shape)}, channels last; choose a layer with (B, N, h, w)")
    tracer = _Tracer({layer, *([end] if end else [])})
    try:
        graph = tracer.trace(model)
    except Exception as error:  # tracing fails in as many ways as there are models
        raise refuse(
            f"torch.fx does not trace the modules around it ({error}); choose another, or give a factory of a "
            "TwoPartModel (--model package.module:factory) with backbone, pooling and rest"
        ) from error
    start = tracer.outputs[layer]
    stop = tracer.outputs[end] if end else next(iter(graph.find_nodes(op="output"))).args[0]
    assert isinstance(stop, fx.Node)
    needed = _needed(stop, start)
    if start not in needed or any(node.op == "placeholder" for node in needed):
        raise refuse(
            "what runs behind it takes other tensors too, or none of it, as inside a block with a shortcut; choose the "
            "whole block"
        )
    return _part(model, graph, _needed(start), None, start), _part(model, graph, needed, start, stop)


def _outputs(model: nn.Module, module: nn.Module, probe: Tensor) -> list[object]:
    """What a module gives in each of its runs."""
    outputs: list[object] = []
    handle = module.register_forward_hook(lambda _, __, output: outputs.append(output))
    try:
        with torch.no_grad():
            model(probe)
    finally:
        handle.remove()
    return outputs


class _Tracer(fx.Tracer):
    """Traces the modules around some others and notes what each module gives; all further modules run as they are.

    Args:
        names: dotted names of these others.
    """

    def __init__(self, names: set[str]) -> None:
        super().__init__()
        self._around = {name[:at] for name in names for at, letter in enumerate(name) if letter == "."}
        self.outputs: dict[str, fx.Node] = {}

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return module_qualified_name not in self._around

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        output = super().call_module(m, forward, args, kwargs)
        if isinstance(output, fx.Proxy):
            self.outputs[self.path_of_module(m)] = output.node
        return output


def _needed(end: fx.Node, start: fx.Node | None = None) -> set[fx.Node]:
    """The nodes that a node is made of, itself included, without those that go into ``start``."""
    found: set[fx.Node] = set()
    waiting = [end]
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting += [] if node is start else node.all_input_nodes
    return found


def _part(
    model: nn.Module, graph: fx.Graph, nodes: set[fx.Node], start: fx.Node | None, end: fx.Node
) -> fx.GraphModule:
    """These nodes of a model's graph as a module, whose input takes the place of ``start``."""
    part = fx.Graph()
    copies = {} if start is None else {start: part.placeholder("activation")}
    for node in graph.nodes:
        if node in nodes and node not in copies:
            copies[node] = part.node_copy(node, copies.__getitem__)
    part.output(copies[end])
    return fx.GraphModule(model, part)


def load_model(
    name: str,
    weights: str | Path | None = None,
    head: str | Path | nn.Module | None = None,
    pooling: str | None = None,
    layer: str | None = None,
) -> TwoPartModel:
    """A model by name.

    Args:
        name: as for :func:`~captum_fam.models.create_model`; ``demo``, the network of ``captum-fam demo``; or
            ``package.module:factory``, a function without arguments that returns a :class:`TwoPartModel` or an
            :class:`~captum_fam.models.EmbeddingModel`.
        weights: a file of weights; None: the pretrained ones for networks of torchvision and timm, which are
            downloaded once, random ones for those of the paper.
        head: what stands in the place of the model's: a file as for :func:`load_head`, or a
            module, of which ``torch.nn.Identity()`` leaves the pooled activation.
        pooling: before the head in place of the model's, ``"gap"``, ``"gmp"``, ``"lse"`` or ``"gem"``.
        layer: where the network is cut, as for :func:`split_model`; of a :class:`TwoPartModel` a module of its
            backbone.

    Raises:
        ValueError: for an unknown name, weights or a head that do not fit, a factory of something else, a pooling
            for which the model's own head was not trained, or a layer at which the model cannot be cut.
    """
    made: object
    if ":" in name:
        if weights is not None:
            raise ValueError(f"weights: {name} brings its own; leave them out")
        module, _, attribute = name.partition(":")
        made = getattr(importlib.import_module(module), attribute)()
    elif name == "demo":
        net = load_demo_network()
        made = TwoPartModel(net.features, net.pooling, size=84, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    else:
        default = None if full_name(name) in list_models() else "DEFAULT"
        made = create_model(name, weights or default)
    model = split_model(made, layer) if isinstance(made, EmbeddingModel) else made
    if not isinstance(model, TwoPartModel):
        raise ValueError(f"model {name}: its factory gave a {type(model).__name__}, expected a TwoPartModel")
    if layer is not None and model is made:
        _cut_earlier(model, layer, name)
    if pooling is not None:
        _set_pooling(model, name, pooling, head is not None)
    if head is not None:
        model.tail.head = head if isinstance(head, nn.Module) else load_head(head)
    return model.eval()


def _cut_earlier(model: TwoPartModel, layer: str, name: str) -> None:
    """Move a part of the backbone to the tail."""
    probe = _probe(model.size)
    backbone, rest = _cut(model.backbone, layer, None, probe, name)
    with torch.no_grad():
        if not _same(rest(backbone(probe).clone()), model.backbone(probe)):
            raise ValueError(f"model {name}: what follows layer {layer!r} does not make its activation of it")
    model.backbone = backbone
    model.tail.rest = rest if model.tail.rest is None else nn.Sequential(rest, model.tail.rest)


def _set_pooling(model: TwoPartModel, name: str, pooling: str, with_head: bool) -> None:
    if pooling not in POOLINGS:
        raise ValueError(f"pooling must be one of {', '.join(POOLINGS)}, got {pooling!r}")
    if not with_head and not isinstance(model.tail.head, nn.Identity):
        raise ValueError(f"pooling: {name} has a head, trained for the pooling that it has; give another head with it")
    model.tail.pooling = POOLINGS[pooling]()
