"""One forward pass of a batch of images that is kept, for any number of maps and comparisons."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from captum_fam import functional as F
from captum_fam._captum import TargetType
from captum_fam._warnings import collected_notes
from captum_fam.attr._layer_run import LayerRun
from captum_fam.attr.base import SimilarityLayerAttribution
from captum_fam.attr.details import AttributionDetails
from captum_fam.attr.embedding_parts import EmbeddingParts, split_embedding
from captum_fam.attr.layer_similarity_cam import LayerSimilarityCAM
from captum_fam.attr.matching import descriptors
from captum_fam.support import Support


class ImageRun:
    """One forward pass of B images, with the recorded way back from the embedding to a layer.

    :meth:`LayerPairs.run <captum_fam.attr.LayerPairs.run>` makes the object. The graph of the layers behind the
    explained layer is in memory as long as the object is. Threads that share the object go the way back one after the
    other.

    Args:
        cam: the exact map of the layer, which knows the model, the layer and the token grid.
        inputs: the input tensors of the model.
        args: further arguments of the model.
        run: what the forward pass left.

    Example:
        >>> from captum_fam.attr import LayerPairs
        >>> run = LayerPairs(model, model.layer4).run(queries)
        >>> run.embedding.shape, run.parts().grid
        (torch.Size([8, 6]), (7, 7))
        >>> run.maps(LayerFAM(model, model.layer4), support).attributions.shape
        torch.Size([8, 1, 7, 7])
    """

    def __init__(
        self, cam: LayerSimilarityCAM, inputs: tuple[Tensor, ...], args: tuple[Any, ...] | None, run: LayerRun
    ) -> None:
        self._cam = cam
        self._inputs = inputs
        self._args = args
        self._run = run
        self._parts: EmbeddingParts | None = None

    def __len__(self) -> int:
        return len(self._run.embedding)

    @property
    def embedding(self) -> Tensor:
        """The embeddings of the images, ``(B, J)``, in float32 or float64."""
        return F.widen(self._run.embedding)

    def parts(self) -> EmbeddingParts:
        """The embeddings as sums over the positions of the layer, computed on first use.

        For all images at once, this takes one pass through the layers behind the explained layer for each position or
        for each feature of the embedding, whichever is expected to take less time.

        Raises:
            ValueError: for a layer that gives several tensors; for a run without its graph, see :meth:`detach`.
        """
        if self._parts is None:
            self._require_graph()
            tensors = self._cam.activations_of(self._run)[0]
            if len(tensors) != 1:
                raise ValueError(f"layer gives {len(tensors)} tensors; pairs are made of the positions of one")
            grid = tuple(tensors[0].shape[2:])
            positions, others = split_embedding(self._cam.account, self._run.ways[0], self.embedding, grid)
            self._parts = EmbeddingParts(self.embedding, positions, grid, others, descriptors(tensors[0]))
        return self._parts

    def maps(
        self,
        attribution: SimilarityLayerAttribution,
        support: Support | Tensor | None = None,
        target: TargetType = None,
    ) -> AttributionDetails:
        """The details of a method for the images of this run, without another run of the images through the model.

        Args:
            attribution: a method of the same model and layer, such as :class:`~captum_fam.LayerFAM`.
            support: as for ``attribution.details``. Default: None, the support of the method's SimilarityToSupport.
            target: as for ``attribution.details``. Default: None, the predicted class of each image.

        Returns:
            What ``attribution.details(images, support, target)`` returns.

        Raises:
            TypeError: for anything but a method of this package.
            ValueError: for a method of another model or layer; for a method that records something else in the forward
                pass than this run has recorded, such as ``LayerFAM(transform=module)``; for a run without its graph;
                as ``attribution.details``.
        """
        with collected_notes(1) as notes:
            return self.noted_maps(notes, attribution, support, target)

    def noted_maps(
        self,
        notes: list[str],
        attribution: SimilarityLayerAttribution,
        support: Support | Tensor | None = None,
        target: TargetType = None,
    ) -> AttributionDetails:
        """The same as :meth:`maps`, but the texts of warnings are added to ``notes``."""
        self._require_graph()
        self._check_method(attribution)
        call = attribution.call_of_run(self._run, self._inputs, self._args, support, target, notes)
        return attribution.details_of(call)

    def detach(self) -> ImageRun:
        """The run without its graph: embeddings, and parts if they have been computed, but no further maps."""
        # Without the way back neither inputs nor activations are of use.
        detached = ImageRun(self._cam, (), None, replace(self._run, passes=[], ways=[]))
        detached._parts = self._parts
        return detached

    def _require_graph(self) -> None:
        if not self._run.ways:
            raise ValueError("this run is detached and has no graph any more; run the images again")

    def _check_method(self, attribution: SimilarityLayerAttribution) -> None:
        """Refuse a method whose forward pass would not be this one."""
        if not isinstance(attribution, SimilarityLayerAttribution):
            raise TypeError(
                "attribution must be a method of this package, such as LayerFAM(model, layer), "
                f"got {type(attribution).__name__}"
            )
        name = type(attribution).__name__
        if attribution.model != self._cam.model or attribution.layers != self._cam.layers:
            raise ValueError(f"attribution: {name} explains another model or layer than this run has recorded")
        missing = not_recorded(self._cam, attribution)
        if missing:
            raise ValueError(
                f"attribution: {name} needs a forward pass of its own ({', '.join(missing)} differs from this run); "
                f"call its details(images, support)"
            )


def not_recorded(cam: LayerSimilarityCAM, attribution: SimilarityLayerAttribution) -> list[str]:
    """What a method needs of the forward pass and the pass of the exact map does not record; an empty list if nothing.

    Args:
        cam: the exact map.
        attribution: a method of the same model and layer.
    """
    recorded = {"unit_norm": "auto", **cam.recording()}
    needed = attribution.recording()
    missing = [key for key, value in needed.items() if key not in recorded or recorded[key] != value]
    watches = type(attribution).watching is not SimilarityLayerAttribution.watching
    return [*missing, "modules behind the layer"] if watches else missing
