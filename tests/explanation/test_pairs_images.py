"""The images of pairs: read once, run once, named, and checked."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from captum_fam.attr.image_run import ImageRun
from captum_fam.attr.layer_pairs import LayerPairs
from captum_fam.explanation.pairs.one_call_for_pairs import explain_pairs
from captum_fam.explanation.reading import pair_images
from captum_fam.models import EmbeddingModel
from tests.explanation.by_hand import (
    HEIGHT,
    MEAN,
    STD,
    WIDTH,
    as_input,
    cosines,
    embeddings,
    picture,
    small_net,
    write_pictures,
)
from tests.explanation.pair_by_hand import MODEL, NET, pictures

pytestmark = pytest.mark.filterwarnings("ignore:the map", "ignore:more than half of a map")


@contextmanager
def counted(net: torch.nn.Module = NET) -> Iterator[list[Tensor]]:
    """The images that go through a network, one by one."""
    seen: list[Tensor] = []

    def note(_: Any, inputs: tuple[Tensor, ...]) -> None:
        seen.extend(inputs[0])

    handle = net.register_forward_pre_hook(note)
    try:
        yield seen
    finally:
        handle.remove()


def file_model() -> EmbeddingModel:
    return EmbeddingModel("small", small_net().double(), "features", size=(HEIGHT, WIDTH), mean=MEAN, std=STD)


def test_each_image_goes_through_the_model_once_by_default() -> None:
    left, right = pictures(6, seed=1), pictures(6, seed=2)
    with counted() as seen:
        why = explain_pairs(MODEL, left, right)
    assert why.about["foil"] == "gallery"
    assert why.beside[0].method == "fam"
    assert len(seen) == 12


@pytest.mark.parametrize("batch_size", [3, 32])
def test_an_image_of_several_pairs_goes_through_the_model_once_on_either_side(batch_size: int) -> None:
    images = pictures(5, seed=1)
    left, right = images[[0, 0, 0, 1, 4, 3]], images[[1, 2, 3, 0, 4, 0]].clone()
    with counted() as seen:
        why = explain_pairs(MODEL, left, right, foil=None, batch_size=batch_size)
    assert len(seen) == 5
    assert len({tuple(image.flatten().tolist()) for image in seen}) == 5
    alone = [explain_pairs(MODEL, left[[pair]], right[[pair]], foil=None) for pair in range(6)]
    for found, expected in ((why, alone), (why.beside[0], [one.beside[0] for one in alone])):
        for (pair,), one in zip(found.pairs or (), expected, strict=True):
            ((other,),) = one.pairs or ()
            assert pair.score == pytest.approx(other.score)
            for name in ("query_map", "support_map", "plain_query_map", "plain_support_map"):
                torch.testing.assert_close(getattr(pair, name), getattr(other, name), rtol=1e-8, atol=1e-10)
            assert [match[:2] for match in pair.matches] == [match[:2] for match in other.matches]


def test_a_gallery_of_more_images_than_a_batch_is_embedded_first_with_the_same_result() -> None:
    left, right = pictures(6, seed=1), pictures(6, seed=2)
    with counted() as seen:
        why = explain_pairs(MODEL, left, right, batch_size=5)
    assert len(seen) == 24
    expected = explain_pairs(MODEL, left, right)
    for one, other in ((why, expected), (why.beside[0], expected.beside[0])):
        torch.testing.assert_close(one.attributions, other.attributions, rtol=1e-8, atol=1e-10)
    with counted() as seen:
        explain_pairs(MODEL, left, right, batch_size=5, method="similarity-cam")
    assert len(seen) == 12


def test_the_graph_of_a_batch_is_kept_only_as_long_as_its_partners_are_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[weakref.ref[ImageRun]] = []
    alive: list[int] = []
    run = LayerPairs.noted_run

    def watched(self: LayerPairs, *args: Any) -> ImageRun:
        alive.append(sum(one() is not None for one in runs))
        made = run(self, *args)
        runs.append(weakref.ref(made))
        return made

    monkeypatch.setattr(LayerPairs, "noted_run", watched)
    explain_pairs(MODEL, pictures(6, seed=1), pictures(6, seed=2), foil=None, batch_size=2)
    assert alive == [0] * 6
    alive.clear(), runs.clear()
    images = pictures(9, seed=1)
    # The first image is in all pairs, so that its batch waits for the last.
    explain_pairs(MODEL, images[[0] * 8], images[1:], foil=None, batch_size=3)
    assert alive == [0, 1, 1]


def test_a_file_that_is_named_in_several_pairs_is_read_and_run_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = write_pictures(tmp_path, ["wren.png", "jay.png", "old/wren.png"])
    opened: list[Any] = []
    read = pair_images.read_batches

    def watched(given: Any, *args: Any, **kwargs: Any) -> Any:
        opened.extend(given)
        return read(given, *args, **kwargs)

    monkeypatch.setattr(pair_images, "read_batches", watched)
    net = file_model()
    left, right = [files[0], str(files[0]), files[2]], [str(files[1]), files[2], files[0]]
    with counted(net.model) as seen:
        why = explain_pairs(net, left, right, foil=None)
    assert opened == [files[0], files[1], files[2]]
    assert len(seen) == 3
    assert why.names == ("wren - jay", "wren - wren-2", "wren-2 - wren")
    assert [pair.name for (pair,) in why.pairs or ()] == ["jay", "wren-2", "wren"]
    expected = cosines(embeddings([Path(one) for one in left]), embeddings([Path(one) for one in right])).diagonal()
    assert [pair.similarity for (pair,) in why.pairs or ()] == pytest.approx(expected.tolist(), rel=1e-6)
    assert why.about["preprocessing"] is not None


def test_pictures_of_any_kind_make_a_pair_and_are_its_images_for_display() -> None:
    net, image = file_model(), picture(1)
    pixels = np.asarray(picture(2))
    why = explain_pairs(net, [image], [pixels], foil=None)
    ((pair,),) = why.pairs or ()
    assert why.names == ("left-0 - right-0",)
    assert why.images[0].size == (image.width, image.height)  # type: ignore[union-attr]
    assert pair.image.size == (pixels.shape[1], pixels.shape[0])  # type: ignore[union-attr]
    mixed = explain_pairs(net, [image], as_input(picture(2))[None], foil=None)
    assert (mixed.pairs or ())[0][0].similarity == pytest.approx(pair.similarity, rel=1e-6)


def test_pictures_of_several_sizes_fit_on_the_right_and_are_named_on_the_left() -> None:
    def keep(image: Any) -> Tensor:
        return torch.from_numpy(np.asarray(image) / 255).permute(2, 0, 1)

    small, wide, tall = picture(1, 10, 12), picture(2, 9, 20), picture(3, 20, 9)
    why = explain_pairs(file_model(), [small, small, small], [wide, tall, small], foil=None, preprocess=keep)
    grids = [tuple(pair.support_map.shape) for (pair,) in why.pairs or ()]
    assert grids == [(4, 9), (9, 4), (4, 5)]
    assert (why.pairs or ())[2][0].similarity == pytest.approx(1)
    with pytest.raises(ValueError, match="left: the pictures give inputs of the shapes"):
        explain_pairs(file_model(), [wide, tall], [small, small], preprocess=keep)


def test_images_and_names_of_ones_own_replace_those_that_were_read() -> None:
    shown = [picture(seed) for seed in range(4)]
    left, right = pictures(2, seed=1), pictures(2, seed=2)
    why = explain_pairs(MODEL, left, right, foil=None, images=(shown[:2], shown[2:]), names=["same", "not same"])
    assert why.names == ("same", "not same")
    assert list(why.images) == shown[:2]
    assert [pair.image for (pair,) in why.pairs or ()] == shown[2:]
    found = explain_pairs(MODEL, left, right, foil=None)
    assert isinstance(found.images[0], Tensor)
    assert found.images[0].min() == 0
    assert found.images[0].max() == 1


def test_a_folder_is_its_images_in_order(tmp_path: Path) -> None:
    write_pictures(tmp_path, ["left/b.png", "left/a.png", "right/y.png", "right/x.png"])
    why = explain_pairs(file_model(), tmp_path / "left", tmp_path / "right", foil=None)
    assert why.names == ("a - x", "b - y")


def test_names_of_pairs_fit_for_files_and_are_all_different(tmp_path: Path) -> None:
    long = write_pictures(tmp_path, ["x" * 150 + ".png", "y" * 150 + ".png"])
    why = explain_pairs(file_model(), [long[0]] * 2, [long[1]] * 2, foil=None)
    assert len(set(why.names)) == 2
    assert all(len(name) < 200 for name in why.names)


def test_signals_and_volumes_have_both_sides(make_net: Any, make_images: Any) -> None:
    for rank in (1, 3):
        net, images = make_net(rank=rank), make_images(4, rank=rank)
        why = explain_pairs(net, images[:2], images[2:], layer="features", foil=None)
        (pair,) = (why.pairs or ())[0]
        assert pair.query_map.shape == images.shape[2:] == pair.support_map.shape
        assert float(pair.query_map.sum()) == pytest.approx(pair.score)
        assert len(pair.matches[0].query) == rank


def test_sides_of_different_lengths_are_refused_with_both_counts() -> None:
    with pytest.raises(ValueError, match="got 3 left and 2 right"):
        explain_pairs(MODEL, pictures(3), pictures(2))


def test_a_side_that_is_no_image_is_named(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"right must be a tensor or an array .* got int"):
        explain_pairs(MODEL, pictures(1), 3)
    with pytest.raises(ValueError, match=r"left must be a batch of images .* got shape \(3, 11\)"):
        explain_pairs(MODEL, pictures(1)[0, :, :, 0], pictures(1))
    with pytest.raises(ValueError, match=r"left must be a batch of images .* got shape"):
        explain_pairs(MODEL, pictures(1)[:0], pictures(1)[:0])
    with pytest.raises(ValueError, match=r"left .* holds no images"):
        explain_pairs(MODEL, tmp_path, tmp_path)
    with pytest.raises(TypeError, match="images must be two sequences"):
        explain_pairs(MODEL, pictures(1), pictures(1), images=[picture(1)])  # type: ignore[arg-type]


def test_names_are_checked() -> None:
    with pytest.raises(ValueError, match="got 'a' twice"):
        explain_pairs(MODEL, pictures(2), pictures(2, seed=3), names=["a", "a"])
