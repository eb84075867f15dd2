"""A map method of a third party: the activation's magnitude, times the cosine to the target class."""

from captum_fam import register_method
from captum_fam.attr import LayerCall, LayerMaps, SimilarityLayerAttribution


@register_method("absolute_1", signed=False)
class LayerAbsolute(SimilarityLayerAttribution):
    """The sum of absolute activations, scaled to the explained score."""

    def map_layers(self, call: LayerCall) -> LayerMaps:
        score = call.comparison.score.view(-1, 1, 1, 1)
        maps = []
        for tensors in call.activations:
            sums = [tensor.abs().sum(1, keepdim=True) for tensor in tensors]
            maps.append(tuple(one / one.sum((2, 3), keepdim=True) * score for one in sums))
        return LayerMaps(maps)
