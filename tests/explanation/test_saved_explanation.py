"""A saved explanation is read again as it was, without any code from the files, or refused with the reason."""

from __future__ import annotations

import dataclasses
import json
import math
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from captum_fam import Explanation, SupportSet, explain
from captum_fam.explanation.reading.thumbnails import shown_pictures
from captum_fam.explanation.saved.saving import file_stem
from tests.explanation.by_hand import picture, small_model

pytestmark = pytest.mark.filterwarnings("ignore:the map explains", "ignore:more than half of a map")

OTHER_FIELDS = ("images", "support_pictures", "foil_pictures", "beside", "pairs", "about", "shares")


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return (
            isinstance(other, Tensor)
            and one.dtype == other.dtype
            and torch.equal(one.nan_to_num(7), other.nan_to_num(7))
        )
    return bool(one == other)


def assert_read_again(read: Explanation, saved: Explanation) -> None:
    for field in dataclasses.fields(Explanation):
        if field.name not in OTHER_FIELDS:
            assert same(getattr(saved, field.name), getattr(read, field.name)), field.name
    assert read.about == json.loads(json.dumps(dict(saved.about)))
    assert (read.shares is None) is (saved.shares is None)
    assert list(read.shares or {}) == list(saved.shares or {})
    assert all(same(share, (read.shares or {})[part]) for part, share in (saved.shares or {}).items())
    for index in range(len(saved)):
        assert read.score_text(index) == saved.score_text(index)
        assert read.account_text(index) == saved.account_text(index)
        assert read.supports_of(index) == saved.supports_of(index)
    assert len(read.beside) == len(saved.beside)
    for one, other in zip(read.beside, saved.beside, strict=True):
        assert_read_again(one, other)


@pytest.mark.parametrize("foil", [None, "others", "runner-up", "images", "gallery"])
@pytest.mark.parametrize("method", [None, ["grad-cam", "shapley", "random"]])
def test_everything_comes_back(
    foil: Any,
    method: Any,
    model: nn.Module,
    support: SupportSet,
    many_queries: Tensor,
    make_images: Callable[..., Tensor],
    tmp_path: Path,
) -> None:
    foil = make_images(2, seed=9) if foil == "images" else foil
    why = explain(model, many_queries, support, layer="features", method=method, foil=foil, target=[0, 1, 2, 1, 0])
    why.save(tmp_path)
    read = Explanation.load(tmp_path)
    assert_read_again(read, why)
    assert repr(read) == repr(why)
    for index, one in enumerate(why.images):
        torch.testing.assert_close(read.images[index], one, rtol=0, atol=0)
        np.testing.assert_array_equal(np.asarray(read.overlay(index)), np.asarray(why.overlay(index)))
    supports, foils = shown_pictures(read, 3)
    expected_supports, expected_foils = shown_pictures(why, 3)
    assert ([one.size for one in supports], len(foils)) == (
        [one.size for one in expected_supports],
        len(expected_foils),
    )
    if foil in (None, "others"):  # figures take long
        titles = [[ax.get_title() for ax in one.figure(3).axes] for one in (read, why)]
        assert titles[0] == titles[1]
    # What was read can be saved and read once more.
    read[1:4].save(tmp_path / "again")
    assert_read_again(Explanation.load(tmp_path / "again"), why[1:4])


def test_photographs_come_back_without_loss_and_supports_as_small_pictures(tmp_path: Path) -> None:
    photos = [picture(0), picture(1, 20, 41)]
    why = explain(small_model(), photos, {"jay": [picture(5), picture(6)], "wren": [picture(7)]}, foil="others")
    why.save(tmp_path)
    read = Explanation.load(tmp_path)
    for one, other in zip(why.images, read.images, strict=True):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))
    for index in range(2):
        for before, after in zip(shown_pictures(why, index), shown_pictures(read, index), strict=True):
            assert len(before) == len(after) > 0
            for one, other in zip(before, after, strict=True):
                difference = np.asarray(one, float) - np.asarray(other, float)
                assert np.sqrt((difference**2).mean()) < 30  # noise is what JPEG keeps worst
    assert len(list(tmp_path.glob("picture-*.jpg"))) == 3  # of all queries together
    assert_read_again(read, why)


@pytest.mark.parametrize("size", [(37,), (11, 6, 9)], ids=["signal", "volume"])
def test_signals_and_volumes_come_back(size: tuple[int, ...], tmp_path: Path) -> None:
    kinds: dict[int, tuple[type[nn.Module], type[nn.Module]]] = {
        1: (nn.Conv1d, nn.AdaptiveAvgPool1d),
        3: (nn.Conv3d, nn.AdaptiveAvgPool3d),
    }
    convolution, pooling = kinds[len(size)]
    net = nn.Sequential(convolution(2, 6, 3), nn.ReLU(), pooling(1), nn.Flatten()).eval()
    inputs = torch.randn(5, 2, *size)
    why = explain(net, inputs[:2], inputs[2:], layer="0")
    why.save(tmp_path)
    read = Explanation.load(tmp_path)
    assert_read_again(read, why)
    assert torch.equal(torch.stack(list(read.images)), torch.as_tensor(why.images))
    np.testing.assert_array_equal(np.asarray(read.overlay(1)), np.asarray(why.overlay(1)))


def test_arrays_and_bfloat16_come_back(model: nn.Module, queries: Tensor, supports: Tensor, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (2, 9, 8, 3), dtype=np.uint8)
    explain(model, queries, supports, layer="features", images=list(pixels)).save(tmp_path)
    read = Explanation.load(tmp_path)
    assert all(
        isinstance(one, np.ndarray) and np.array_equal(one, two) for one, two in zip(read.images, pixels, strict=True)
    )
    halves = torch.rand(2, 3, 9, 8).bfloat16()
    explain(model, queries, supports, layer="features", images=halves).save(tmp_path, overlays=False)
    assert all(
        torch.equal(one, two.float()) for one, two in zip(Explanation.load(tmp_path).images, halves, strict=True)
    )


def test_pairs_come_back_without_their_decomposition(
    model: nn.Module, support: SupportSet, many_queries: Tensor, tmp_path: Path
) -> None:
    why = explain(model, many_queries, support, layer="features", sides="both", top=2, foil="others", target=1)
    why.save(tmp_path)
    read = Explanation.load(tmp_path)
    for one, other in zip((why, *why.beside), (read, *read.beside), strict=True):
        assert one.pairs is not None
        assert other.pairs is not None
        for before, after in zip(one.pairs, other.pairs, strict=True):
            assert len(before) == len(after) == 2
            for pair, again in zip(before, after, strict=True):
                assert again.decomposition is None
                for field in dataclasses.fields(pair):
                    if field.name not in ("decomposition", "image"):
                        expected, got = getattr(pair, field.name), getattr(again, field.name)
                        assert same(expected, got) or (math.isnan(expected) and math.isnan(got)), field.name
    assert read.pairs is not None
    assert read.pairs[0][0].matches
    assert len(read.figure(0).axes) == len(why.figure(0).axes)


@pytest.mark.parametrize(
    "name",
    ["wren 1", "é" * 200, "a" * 250, "zero\0byte", "lone\ud800surrogate", "raw\udcffbyte", "<b>&amp;", "..", ".hidden"],
    ids=lambda name: ascii(name)[:20],
)
def test_names_that_no_file_can_have_come_back(
    name: str, model: nn.Module, queries: Tensor, supports: Tensor, tmp_path: Path
) -> None:
    why = explain(model, queries, supports, layer="features", names=[name, f"{name}2"])
    why.save(tmp_path)
    assert Explanation.load(tmp_path).names == (name, f"{name}2")
    assert all(len(str(path.name).encode("utf-8", "surrogateescape")) < 200 for path in tmp_path.iterdir())


def test_stems_of_different_names_differ() -> None:
    names = ["a" * 160, "a" * 161, "a" * 162, "a\0", "a\\0", "a\ud800", "a\\ud800", "wren"]
    stems = [file_stem(name) for name in names]
    assert len(set(stems)) == len(names)
    assert (stems[0], stems[-1]) == (names[0], "wren")
    assert max(map(len, stems)) == 160


def test_a_class_without_a_finite_score_and_many_classes_come_back(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    support = SupportSet(torch.rand(150, 6), range(150))
    why = explain(net, torch.rand(2, 3, 9, 8), support, layer="1")
    lacking = why.scores.clone()
    lacking[:, 3] = -torch.inf
    why = dataclasses.replace(why, scores=lacking, beside=())
    why.save(tmp_path)
    assert_read_again(Explanation.load(tmp_path), why)


def _manifest(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def _arrays(folder: Path, change: Callable[[dict[str, Any]], object], *, allow_pickle: bool = False) -> None:
    with np.load(folder / "query-1.npz") as file:
        arrays = dict(file)
    change(arrays)
    np.savez(folder / "query-1.npz", allow_pickle=allow_pickle, **arrays)


class Bomb:
    """Makes a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "arrays of another query": lambda folder: (folder / "query-1.npz").write_bytes(
        (folder / "query-0.npz").read_bytes()
    ),
    "no manifest": lambda folder: (folder / "manifest.json").unlink(),
    "no JSON": lambda folder: (folder / "manifest.json").write_text("{"),
    "other results": lambda folder: _manifest(folder, lambda manifest: manifest.pop("explanation")),
    "other version": lambda folder: _manifest(folder, lambda manifest: manifest["explanation"].update(format=99)),
    "no queries": lambda folder: _manifest(folder, lambda manifest: manifest.update(queries=[])),
    "queries of another type": lambda folder: _manifest(folder, lambda manifest: manifest.update(queries=7)),
    "a query without files": lambda folder: _manifest(folder, lambda manifest: manifest["queries"][0].pop("arrays")),
    "a class too many": lambda folder: _manifest(folder, lambda manifest: manifest["classes"].append("owl")),
    "a file elsewhere": lambda folder: _manifest(
        folder, lambda manifest: manifest["queries"][0].update(image={"file": "../secret.png"})
    ),
    "a path elsewhere": lambda folder: _manifest(
        folder, lambda manifest: manifest["queries"][0].update(arrays="/etc/passwd")
    ),
    "arrays gone": lambda folder: (folder / "query-1.npz").unlink(),
    "arrays cut": lambda folder: (folder / "query-1.npz").write_bytes((folder / "query-1.npz").read_bytes()[:900]),
    "arrays of zeros": lambda folder: (folder / "query-1.npz").write_bytes(b"\0" * 900),
    "no archive": lambda folder: (folder / "query-1.npz").write_bytes(pickle.dumps(Bomb(folder / "run"))),
    "a map of another size": lambda folder: _arrays(folder, lambda arrays: arrays.update(fam=np.zeros((2, 2)))),
    "no map": lambda folder: _arrays(folder, lambda arrays: arrays.pop("fam")),
    "a pickle inside": lambda folder: _arrays(
        folder, lambda arrays: arrays.update(fam=np.array([Bomb(folder / "run")], object)), allow_pickle=True
    ),
    "a picture gone": lambda folder: next(folder.glob("picture-*.jpg")).unlink(),
    "a picture of text": lambda folder: next(folder.glob("picture-*.jpg")).write_text("no picture"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_and_other_folders_are_refused_with_one_clear_error(
    damage: str, model: nn.Module, queries: Tensor, supports: Tensor, tmp_path: Path
) -> None:
    folder = tmp_path / "why"
    explain(model, queries, supports, layer="features").save(folder)
    Image.new("RGB", (4, 4)).save(tmp_path / "secret.png")
    DAMAGE[damage](folder)
    error: type[Exception] = FileNotFoundError if damage == "no manifest" else ValueError
    with pytest.raises(error, match=r"why(/manifest\.json)? (is|was|holds) .*(again|no saved explanation)"):
        Explanation.load(folder)
    assert not (folder / "run").exists()
    if damage == "other version":
        with pytest.raises(ValueError, match="was saved in the format 99, expected the format 1"):
            Explanation.load(folder)
    with pytest.raises(FileNotFoundError, match="holds no manifest"):
        Explanation.load(tmp_path / "nowhere")


def test_the_files_hold_no_pickles(model: nn.Module, queries: Tensor, supports: Tensor, tmp_path: Path) -> None:
    explain(model, queries, supports, layer="features", sides="both", top=1).save(tmp_path)
    for path in tmp_path.glob("*.npz"):
        with zipfile.ZipFile(path) as archive:
            assert all(name.endswith(".npy") for name in archive.namelist())
        with np.load(path, allow_pickle=False) as file:
            assert all(file[name].dtype != object for name in file.files)


def test_the_lines_between_matches_come_back(
    model: nn.Module, support: SupportSet, many_queries: Tensor, tmp_path: Path
) -> None:
    why = explain(model, many_queries, support, layer="features", sides="both", top=2, target=1, top_matches=3)
    why.save(tmp_path)
    read = Explanation.load(tmp_path)
    assert why.pairs is not None
    assert read.pairs is not None
    for before, after in zip(sum(why.pairs, ()), sum(read.pairs, ()), strict=True):
        matrix = before.decomposition.matrix()
        width = before.support_map.shape[1]
        # Cells of which each is the best of the other, found one by one.
        mutual = {
            (divmod(row, before.query_map.shape[1]), divmod(column, width)): float(matrix[row, column])
            for row in range(len(matrix))
            for column in range(matrix.shape[1])
            if matrix[row, column] == matrix[row].max() == matrix[:, column].max()
        }
        best = sorted(mutual, key=lambda cells: -mutual[cells])[:12]
        assert [(one.query, one.support) for one in after.mutual_matches] == best
        assert [one.share for one in after.mutual_matches] == pytest.approx([mutual[cells] for cells in best])
        assert len(after.matches) == 3
    titles = [[ax.get_title() for ax in one.figure(1).axes] for one in (why, read)]
    assert titles[0] == titles[1]
    assert any("mutual match" in title for title in titles[1])
    for one, has_note in ((why, False), (read, True)):
        one.to_html(tmp_path / "why.html")
        assert ("a saved explanation keeps no others" in (tmp_path / "why.html").read_text("utf-8")) is has_note


def test_a_folder_that_is_saved_again_has_no_files_of_the_earlier_explanation(
    model: nn.Module, queries: Tensor, supports: Tensor, tmp_path: Path
) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "mine.png").write_text("mine")
    options: dict[str, Any] = {"layer": "features", "sides": "both", "top": 1}
    explain(model, queries, supports, **options, names=["wren", "jay"]).save(tmp_path)
    explain(model, queries[:1], supports, **options, names=["owl"]).save(tmp_path)
    left = {path.name for path in tmp_path.iterdir()}
    assert {"owl.npz", "owl.fam.png", "manifest.json", "notes.txt", "mine.png"} <= left
    assert not [name for name in left if name.startswith(("wren", "jay"))]
    listed = json.dumps(json.loads((tmp_path / "manifest.json").read_text())["queries"])
    assert all(name in listed for name in left - {"manifest.json", "notes.txt", "mine.png"})
    assert Explanation.load(tmp_path).names == ("owl",)


def test_a_manifest_of_others_removes_nothing(
    model: nn.Module, queries: Tensor, supports: Tensor, tmp_path: Path
) -> None:
    folder, why = tmp_path / "why", explain(model, queries, supports, layer="features")
    why.save(folder)
    for name in ("../secret.png", "thesis.txt", "..", "."):
        _manifest(folder, lambda manifest, name=name: manifest["queries"].append({"arrays": name}))  # type: ignore[misc]
    (tmp_path / "secret.png").touch()
    (folder / "thesis.txt").touch()
    why.save(folder)
    assert (tmp_path / "secret.png").exists()
    assert (folder / "thesis.txt").exists()
    for text in ("{", "[]", '{"queries": 3, "explanation": {}}'):
        (folder / "manifest.json").write_text(text)
        why.save(folder)
        assert Explanation.load(folder).names == why.names


def test_names_that_differ_in_case_only_have_files_of_their_own(
    model: nn.Module, queries: Tensor, supports: Tensor, tmp_path: Path
) -> None:
    why = explain(model, queries, supports, layer="features", names=["Wren", "wren"])
    why.save(tmp_path)
    files = [path.name.casefold() for path in tmp_path.iterdir()]
    assert len(set(files)) == len(files) == 2 * 3 + 1 + len(list(tmp_path.glob("picture-*")))
    read = Explanation.load(tmp_path)
    assert read.names == ("Wren", "wren")
    assert torch.equal(read.maps, why.maps)


def test_counts_of_numpy_and_torch_are_saved_like_those_of_python(
    model: nn.Module, support: SupportSet, many_queries: Tensor, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"layer": "features", "sides": "both"}
    plain = explain(model, many_queries, support, **options, top=1, top_matches=2, batch_size=3, smooth=3)
    counts: dict[str, Any] = {"top": np.int64(1), "top_matches": np.uint8(2), "batch_size": torch.tensor(3)}
    why = explain(model, many_queries, support, **options, **counts, smooth=np.int32(3))
    assert [len(pair.matches) for (pair,) in why.pairs] == [2] * len(many_queries)
    why.save(tmp_path)
    assert_read_again(Explanation.load(tmp_path), plain)
