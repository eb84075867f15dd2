"""A measure of a third party: does the largest value of the map lie on the object?"""

import torch
from torch import Tensor

from captum_fam.experiments import Conventions, MapBatch, register_measure
from captum_fam.metrics import box_mask, upsample


@register_measure("peak+box", needs=("boxes",))
def peak(batch: MapBatch, conventions: Conventions) -> Tensor:
    """One where the largest value lies in a box, else zero, ``(B,)``."""
    inside = box_mask(batch.boxes, batch.size).to(batch.maps.device)
    maps = upsample(batch.maps, batch.size)
    at = maps.flatten(1).argmax(1, keepdim=True)
    return inside.flatten(1).gather(1, at)[:, 0].to(torch.float32)
