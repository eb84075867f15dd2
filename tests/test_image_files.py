"""Image files and folders, sorted into classes and queries."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from captum_fam._files import MANIFEST, versions
from captum_fam.image_files import (
    check_output_apart,
    find_class_folders,
    find_classes,
    find_queries,
    names_of_files,
    same_files,
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with birds of three classes."""
    for name in ("q1.png", "q2.jpg", *(f"birds/{bird}/{i}.png" for bird in ("crow", "jay", "wren") for i in range(2))):
        touch(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def touch(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def write_results(folder: Path, *names: str) -> None:
    """A folder as ``explain`` leaves it, with an overlay for each query."""
    folder.mkdir(parents=True, exist_ok=True)
    queries = [{"file": f"{name}.png", "figure": f"{name}.figure.png"} for name in names]
    queries = [
        {**query, "methods": {"fam": {"overlay": f"{name}.fam.png"}}}
        for query, name in zip(queries, names, strict=True)
    ]
    (folder / MANIFEST).write_text(json.dumps({"queries": queries, "versions": versions()}))
    for name in names:
        touch(folder / f"{name}.fam.png")
        touch(folder / f"{name}.figure.png")


def in_words(skipped: dict[Path, str]) -> dict[str, str]:
    return {str(path): reason for path, reason in skipped.items()}


def test_files_are_one_class_and_folders_are_classes(folder: Path) -> None:
    files = [Path("birds/wren/0.png"), Path("q1.png")]
    assert find_classes(files, "--support") == {"support": files}
    assert find_classes([Path("birds/jay")], "support") == {"jay": [Path("birds/jay/0.png"), Path("birds/jay/1.png")]}
    assert list(find_classes([Path("birds")], "--support")) == ["crow", "jay", "wren"]
    classes = find_classes([Path("birds/wren"), Path("birds/jay")], "--support")
    assert list(classes) == ["wren", "jay"]
    assert classes.folders == [Path("birds/wren"), Path("birds/jay")]
    assert classes.skipped == {}


def test_a_folder_has_the_name_by_which_it_is_called(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("tailed").symlink_to("birds/wren")
    monkeypatch.chdir("birds/jay")
    assert list(find_classes([Path("."), Path("../crow"), Path("../../tailed")], "--support")) == [
        "jay",
        "crow",
        "tailed",
    ]


def test_results_hidden_folders_and_folders_without_images_are_no_classes_and_are_named(folder: Path) -> None:
    write_results(Path("birds/out"), "q1")
    touch(Path("birds/.thumbnails/0.png"))
    touch(Path("birds/.captum-fam-abc/0.png"))
    touch(Path("birds/owls/barn/0.png"))
    touch(Path("birds/readme.txt"))
    touch(Path("birds/wren/labels.csv"))
    touch(Path("birds/wren/more/2.png"))
    Path("birds/empty").mkdir()
    classes = find_classes([Path("birds")], "--support")
    assert {name: len(files) for name, files in classes.items()} == {"crow": 2, "jay": 2, "wren": 2}
    assert in_words(classes.skipped) == {
        "birds/.captum-fam-abc": "hidden",
        "birds/.thumbnails": "hidden",
        "birds/empty": "folder without images",
        "birds/out": "results of captum-fam",
        "birds/owls": "folder of folders",
        "birds/readme.txt": "no image",
        "birds/wren/labels.csv": "no image",
        "birds/wren/more": "folder",
    }


def test_results_in_the_folder_of_class_folders_change_no_class(folder: Path) -> None:
    before = find_classes([Path("birds")], "--support")
    write_results(Path("birds"), "q1", "q2")
    assert find_classes([Path("birds")], "--support") == before


def test_results_among_the_queries_of_a_folder_are_not_read(folder: Path) -> None:
    before = find_queries([Path(".")])
    write_results(Path("out"), "q1", "q2")
    assert find_queries([Path(".")]) == before == {Path("q1.png"): "q1", Path("q2.jpg"): "q2"}
    assert in_words(find_queries([Path(".")]).skipped) == {"birds": "folder", "out": "results of captum-fam"}


@pytest.mark.parametrize("find", [find_classes, find_queries])
def test_a_folder_of_images_that_holds_results_is_refused(find: Callable[..., object], folder: Path) -> None:
    write_results(Path("birds/wren"), "q1")
    with pytest.raises(ValueError, match=r"--support birds/wren holds results of captum-fam \(manifest\.json\)"):
        find([Path("birds/wren")], "--support")


def test_results_among_many_files_or_folders_are_left_out(folder: Path) -> None:
    write_results(Path("."), "q1", "q2")
    paths = sorted(Path(".").glob("q*"))
    assert [path.name for path in paths] == [
        "q1.fam.png",
        "q1.figure.png",
        "q1.png",
        "q2.fam.png",
        "q2.figure.png",
        "q2.jpg",
    ]
    queries = find_queries(paths)
    assert list(queries) == [Path("q1.png"), Path("q2.jpg")]
    assert len(queries.skipped) == 4
    assert find_classes(paths, "--support") == {"support": [Path("q1.png"), Path("q2.jpg")]}
    write_results(Path("birds/out"), "q1")
    classes = find_classes(sorted(Path("birds").iterdir()), "--support")
    assert list(classes) == ["crow", "jay", "wren"]
    assert in_words(classes.skipped) == {"birds/out": "results of captum-fam"}
    for find in (lambda: find_queries(paths[:2]), lambda: find_classes(paths[:2], "--foil")):
        with pytest.raises(ValueError, match="all files are results of captum-fam"):
            find()


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        ([], "--support: expected files or folders, got none"),
        (["gone.png"], "--support gone.png: no such file or folder"),
        (["lost"], "--support lost: a link to no file"),
        (["empty"], "--support empty holds no images"),
        (["deep"], r"--support deep holds no images .*but folders: give these"),
        (["birds/wren", "q1.png"], "--support: give either images or folders, not both"),
        (["birds/wren", "more/wren"], "two folders have the same name"),
        (["mixed"], "--support mixed holds both images and folders of images"),
        (["out", "out2"], "all folders hold results of captum-fam"),
    ],
)
def test_what_forms_no_classes_is_refused(paths: list[str], message: str, folder: Path) -> None:
    Path("lost").symlink_to("nowhere")
    Path("empty").mkdir()
    write_results(Path("out"), "q1")
    write_results(Path("out2"), "q1")
    for name in (
        "deep/er/birds/0.png",
        "more/wren/0.png",
        "mixed/0.png",
        "mixed/jay/0.png",
        ".hidden/0.png",
        ".cache/0.png",
    ):
        touch(Path(name))
    with pytest.raises(ValueError, match=message):
        find_classes([Path(path) for path in paths], "--support")


def test_a_hidden_folder_can_be_named(folder: Path) -> None:
    touch(Path(".hidden/0.png"))
    touch(Path(".old/0.png"))
    assert find_classes([Path(".hidden")], "--support") == {".hidden": [Path(".hidden/0.png")]}
    assert list(find_classes([Path(".hidden"), Path(".old")], "--support")) == [".hidden", ".old"]


def test_class_folders_can_be_deep(folder: Path) -> None:
    touch(Path("birds/owls/barn/0.png"))
    touch(Path("birds/owls/.old/0.png"))
    assert "owls" not in find_class_folders("birds")
    deep = find_class_folders("birds", deep=True)
    assert list(deep) == ["crow", "jay", "owls", "wren"]
    assert deep["owls"] == [Path("birds/owls/barn/0.png")]


def test_queries_of_the_same_name_get_numbers(folder: Path) -> None:
    paths = [Path(name) for name in ("a/x.png", "b/X.jpg", "c/x-2.png", "d/x.png", "e/x.gif")]
    assert list(find_queries(paths).values()) == ["x", "X-2", "x-2-2", "x-3", "x-4"]


def test_a_name_that_is_too_long_for_its_results_is_shortened_and_stays_unique() -> None:
    # An accent takes two bytes: 160 bytes end within a character.
    stems = ["n" * 250, "n" * 249 + "m", "\u00e9" * 120, "n" * 160]
    names = names_of_files([Path(f"{stem}.jpg") for stem in stems])
    assert names[3] == "n" * 160
    assert len(set(names)) == 4
    assert all(len(name.encode()) <= 160 for name in names)
    assert names[2].startswith("\u00e9" * 75 + "-")


def test_a_query_that_is_given_twice_counts_once(folder: Path) -> None:
    queries = find_queries([Path("q1.png"), Path("q2.jpg"), Path("./q1.png")])
    assert queries == {Path("q1.png"): "q1", Path("q2.jpg"): "q2"}


def test_results_may_lie_inside_the_images_but_not_beside_them(folder: Path) -> None:
    Path("link").symlink_to("birds/wren")
    classes = find_classes([Path("birds")], "--support")
    for out in ("birds/out", "out"):
        check_output_apart(Path(out), classes.folders)
    for out in ("birds/wren", "link", "birds/jay/../wren", "birds"):
        with pytest.raises(ValueError, match=r"--out .*: images are read from this folder"):
            check_output_apart(Path(out), classes.folders)


def test_files_are_the_same_by_path_or_by_bytes(folder: Path) -> None:
    for number, name in enumerate(("q1.png", "q2.jpg", "birds/wren/0.png")):
        Path(name).write_bytes(bytes([number]) * 7)
    shutil.copy("q2.jpg", "birds/jay/0.png")
    Path("link.png").symlink_to("q1.png")
    os.mkfifo("pipe.png")
    first = ["q1.png", "q2.jpg", "gone.png", "pipe.png"]
    second = ["birds/wren/0.png", "birds/jay/0.png", "link.png", str(folder / "q2.jpg"), "gone.png", "pipe.png"]
    assert same_files(first, second) == [(0, 2), (1, 1), (1, 3)]
    assert same_files([], second) == []
