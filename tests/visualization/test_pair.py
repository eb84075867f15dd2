from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from captum_fam.visualization import visualize_pair
from tests.visualization.figures import PHOTO, panels


class Match(NamedTuple):
    query: tuple[int, ...]
    support: tuple[int, ...]
    share: float


OTHER = torch.rand(3, 15, 10)


def test_a_pair_is_two_plain_images_with_lines_and_two_maps_on_one_scale() -> None:
    figure = visualize_pair(
        PHOTO,
        OTHER,
        torch.full((1, 3, 5), 0.5),
        torch.full((5, 4), -2.0),
        [Match((2, 4), (4, 3), 0.1)],
        unit="share of the cosine",
        titles={"lines": "a wren and a jay"},
        caption="a network",
    )
    lines, query, support = panels(figure)
    assert lines.get_title() == "a wren and a jay"
    assert query.get_title() == "map of the query\nthe same everywhere"
    assert support.get_title() == "map of the support\nthe same everywhere"
    for image, ax in zip(lines.images, (query, support), strict=True):
        np.testing.assert_allclose(image.get_array(), ax.images[0].get_array())
    assert [ax.images[1].get_clim() for ax in (query, support)] == [(-2, 2)] * 2
    assert [[bar.get_ylabel() for bar in ax.child_axes] for ax in (query, support)] == [[], ["share of the cosine"]]
    assert len(lines.lines) == 1
    assert figure.get_suptitle() == "a network"


@pytest.mark.parametrize("sides", ["", "query", "support"])
def test_maps_may_be_left_out(sides: str) -> None:
    maps = {f"{side}_map": torch.eye(4) for side in ("query", "support") if side in sides}
    figure = visualize_pair(PHOTO, OTHER, **maps, matches=[Match((3, 3), (1, 1), 0.1)], grids=((4, 4), (4, 4)))
    assert [ax.get_title() for ax in panels(figure)] == [
        "query and support",
        *(f"map of the {side}" for side in maps and [sides]),
    ]


def test_signals_are_drawn_without_lines() -> None:
    figure = visualize_pair(
        torch.rand(2, 50), torch.rand(30), torch.rand(1, 7), torch.rand(5), [Match((0,), (1,), 1.0)]
    )
    assert [ax.get_title() for ax in panels(figure)] == ["query", "support", "map of the query", "map of the support"]


def test_volumes_are_drawn_with_lines_between_their_middle_slices() -> None:
    volumes, maps = torch.rand(2, 1, 5, 8, 9), torch.randn(2, 1, 2, 3, 3)
    figure = visualize_pair(*volumes, *maps, [Match((1, 0, 0), (1, 2, 2), 1.0)])
    lines, query, _ = panels(figure)
    assert lines.get_title() == "query and support\nmiddle slice"
    assert len(lines.lines) == 1
    assert len(query.texts) == 5


def test_outlines_and_files(tmp_path: Path) -> None:
    figure = visualize_pair(
        Image.new("RGB", (40, 30)), Image.new("RGB", (10, 90)), torch.eye(3), torch.eye(5), style="outline"
    )
    assert all(ax.collections for ax in panels(figure)[1:])
    figure.save(tmp_path / "pair.png")
    assert Image.open(tmp_path / "pair.png").size[1] > 300


def test_panels_of_very_different_images_do_not_overlap() -> None:
    figure = visualize_pair(torch.rand(3, 90, 10), torch.rand(3, 10, 90), torch.eye(3), torch.eye(5), unit="cosine")
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    boxes = [ax.get_tightbbox(renderer) for ax in panels(figure)]
    assert not any(one.overlaps(other) for number, one in enumerate(boxes) for other in boxes[:number])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"matches": [Match((0, 0), (0, 0), 1.0)]}, "matches .*grids"),
        ({"matches": [Match((0, 0), (0, 0), 1.0)], "query_map": torch.eye(3)}, "matches .*grids"),
        ({"titles": {"foil": "a jay"}}, "titles has foil, expected lines, "),
        ({"query_image": PHOTO + 2}, "query .*unnormalize"),
        ({"support_image": PHOTO + 2}, "support .*unnormalize"),
        ({"support_map": torch.full((2, 2), torch.nan)}, "support_map: .*NaN"),
        ({"style": "heat"}, "style .*'heat'"),
    ],
)
def test_what_cannot_be_drawn_is_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        visualize_pair(**{"query_image": PHOTO, "support_image": OTHER, **arguments})  # type: ignore[arg-type]
