from __future__ import annotations

from collections import deque

import pytest
import torch
from torch import Tensor

from captum_fam.metrics import box_from_map
from captum_fam.metrics.components import component_boxes, label_components, largest_component_boxes


def flood(mask: Tensor, connectivity: int) -> list[list[tuple[int, int]]]:
    """Components as lists of pixels (y, x), in raster order of their first ones."""
    height, width = mask.shape
    steps = [(0, 1), (1, 0), (0, -1), (-1, 0)]
    if connectivity == 8:
        steps += [(1, 1), (1, -1), (-1, 1), (-1, -1)]
    left = {(y, x) for y in range(height) for x in range(width) if mask[y, x]}
    found = []
    for start in sorted(left):
        if start not in left:
            continue
        left.remove(start)
        component, todo = [start], deque([start])
        while todo:
            y, x = todo.popleft()
            for dy, dx in steps:
                pixel = (y + dy, x + dx)
                if pixel in left:
                    left.remove(pixel)
                    component.append(pixel)
                    todo.append(pixel)
        found.append(component)
    return found


def spiral(side: int) -> Tensor:
    """One path of length side^2 / 2 that winds inwards: the longest way that a number has to go."""
    mask = torch.zeros(side, side, dtype=torch.bool)
    y, x, dy, dx = 0, 0, 0, 1
    mask[0, 0] = True
    for length in [side - 1, *[n for n in range(side - 1, 1, -2) for _ in range(2)]]:
        for _ in range(length):
            y, x = y + dy, x + dx
            mask[y, x] = True
        dy, dx = dx, -dy
    return mask


MASKS = {
    "noise": torch.rand(12, 11, 17, generator=torch.Generator().manual_seed(1)) > 0.55,
    "dense": torch.rand(6, 9, 5, generator=torch.Generator().manual_seed(2)) > 0.2,
    "blobs": torch.nn.functional.interpolate(
        torch.rand(8, 1, 4, 5, generator=torch.Generator().manual_seed(3)), (23, 31), mode="bilinear"
    )[:, 0]
    > 0.5,
    "spiral": torch.stack([spiral(21), torch.zeros(21, 21, dtype=torch.bool), spiral(21).T]),
    "full-between-empty": torch.tensor([False, True, False])[:, None, None].expand(3, 4, 6),
    "one-row": torch.tensor([[[True, False, True, True]]]),
}


@pytest.mark.parametrize("connectivity", [4, 8])
@pytest.mark.parametrize("name", MASKS)
def test_components_are_those_of_a_flood_fill(name: str, connectivity: int) -> None:
    masks = MASKS[name]
    components = label_components(masks, connectivity)
    expected_owner, number = [], 0
    for image, mask in enumerate(masks):
        for component in flood(mask, connectivity):
            number += 1
            expected_owner.append(image)
            assert {int(components.labels[image, y, x]) for y, x in component} == {number}
    assert (components.labels > 0).equal(masks)
    assert components.owner.tolist() == expected_owner


def test_neighbors_at_a_corner_are_one_component_of_eight_but_two_of_four() -> None:
    mask = torch.tensor([[[True, False], [False, True]]])
    assert len(label_components(mask, 8).owner) == 1
    assert len(label_components(mask, 4).owner) == 2


def test_images_of_a_batch_are_no_neighbors() -> None:
    masks = torch.ones(3, 2, 2, dtype=torch.bool)
    assert label_components(masks).owner.tolist() == [0, 1, 2]


@pytest.mark.parametrize("name", MASKS)
def test_boxes_hold_their_components(name: str) -> None:
    masks = MASKS[name]
    expected = []
    for mask in masks:
        for component in flood(mask, 8):
            ys, xs = zip(*component, strict=True)
            expected.append([min(xs), min(ys), max(xs) + 1, max(ys) + 1])
    boxes = component_boxes(label_components(masks))
    assert boxes.dtype == torch.int64
    assert boxes.tolist() == expected


def reference_largest(mask: Tensor, image: Tensor) -> list[int]:
    best = max(
        enumerate(flood(mask, 8)),
        key=lambda item: (len(item[1]), sum(float(image[pixel]) for pixel in item[1]), -item[0]),
        default=None,
    )
    if best is None:
        return [0, 0, 0, 0]
    ys, xs = zip(*best[1], strict=True)
    return [min(xs), min(ys), max(xs) + 1, max(ys) + 1]


@pytest.mark.parametrize("levels", [2, 3, 1000])
def test_largest_component_is_by_pixels_then_energy_then_the_first(levels: int) -> None:
    # Few levels make many ties of pixels, and some of energy; eighths are exact in any order of summation.
    generator = torch.Generator().manual_seed(levels)
    images = torch.randint(1, levels, (300, 5, 7), generator=generator) / 1024
    images = images * (torch.rand(images.shape, generator=generator) > 0.6)
    masks = images > 0
    found = largest_component_boxes(label_components(masks), images)
    assert found.tolist() == [reference_largest(mask, image) for mask, image in zip(masks, images, strict=True)]


def test_ties_are_broken_by_energy() -> None:
    image = torch.tensor([[[0.5, 0.5, 0.0, 0.6, 0.5]]])
    assert largest_component_boxes(label_components(image > 0), image).tolist() == [[3, 0, 5, 1]]
    even = torch.tensor([[[0.5, 0.5, 0.0, 0.5, 0.5]]])
    assert largest_component_boxes(label_components(even > 0), even).tolist() == [[0, 0, 2, 1]]


def test_no_images_have_no_components() -> None:
    components = label_components(torch.zeros(0, 4, 4, dtype=torch.bool))
    assert len(components.owner) == 0
    assert component_boxes(components).shape == (0, 4)
    assert largest_component_boxes(components, torch.zeros(0, 4, 4)).shape == (0, 4)


def test_other_connectivities_are_refused() -> None:
    with pytest.raises(ValueError, match=r"connectivity .*6"):
        label_components(torch.ones(1, 2, 2, dtype=torch.bool), 6)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_maps_on_a_device_have_the_boxes_that_they_have_on_the_cpu() -> None:
    maps = torch.rand(40, 1, 6, 5)
    boxes = box_from_map(maps.cuda(), 0.4, size=(23, 31))
    assert boxes.is_cuda
    assert boxes.cpu().equal(box_from_map(maps, 0.4, size=(23, 31)))
