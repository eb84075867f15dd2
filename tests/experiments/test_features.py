"""Every image through the backbone once, past those that cannot be used."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import torch

from captum_fam.experiments.data.boxed_images import BoxedImage
from captum_fam.experiments.data.load import ScenesWithBoxes
from captum_fam.experiments.features import Kept, discard, extract
from captum_fam.experiments.two_part_model import TwoPartModel
from tests.experiments.data_sets import Damaged


def test_rows_are_the_model_applied_to_the_items(model: TwoPartModel, scenes: ScenesWithBoxes, tmp_path: Path) -> None:
    features = extract(model, scenes, tmp_path, ("activations", "images"), batch_size=16)
    rows = torch.tensor([129, 3, 3])
    images = torch.stack([scenes[int(row)].image for row in rows])
    with torch.no_grad():
        torch.testing.assert_close(features.activations(rows), model.backbone(images))
        torch.testing.assert_close(features.embeddings[rows], model(images))
    assert torch.equal(features.images(rows), images)
    assert torch.equal(features.labels, scenes.labels)
    assert torch.equal(features.boxes[129], scenes[129].boxes)
    assert torch.equal(features.items, torch.arange(130))


def test_unusable_images_are_left_out_and_named(model: TwoPartModel, scenes: ScenesWithBoxes, tmp_path: Path) -> None:
    damaged = Damaged(scenes, unreadable={0, 17}, overflowing={40})
    features = extract(model, damaged, tmp_path, ("activations",), batch_size=16)
    assert features.skipped == {
        0: "scene-0.jpg: corrupt",
        17: "scene-17.jpg: corrupt",
        40: "its features hold NaN or inf",
    }
    assert len(features) == 127
    assert features.items[0] == 1
    row = int((features.items == 41).nonzero())
    with torch.no_grad():
        expected = model.backbone(scenes[41].image[None])
    torch.testing.assert_close(features.activations(torch.tensor([row])), expected)
    assert torch.equal(features.boxes[row], scenes[41].boxes)


def test_a_dataset_of_which_nothing_can_be_read_is_refused(
    model: TwoPartModel, scenes: ScenesWithBoxes, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"dataset: none of its 130 items.*scene-0\.jpg: corrupt"):
        extract(model, Damaged(scenes, unreadable=set(range(130))), tmp_path)
    assert len(extract(model, scenes, tmp_path)) == 130


def test_a_finished_folder_is_read_instead_of_made(
    model: TwoPartModel, scenes: ScenesWithBoxes, tmp_path: Path
) -> None:
    first = extract(model, scenes, tmp_path, batch_size=16)
    again = extract(None, scenes, tmp_path)  # type: ignore[arg-type]
    assert torch.equal(first.embeddings, again.embeddings)
    assert torch.equal(first.activations(torch.tensor([7])), again.activations(torch.tensor([7])))


def test_an_unfinished_folder_is_made_anew(model: TwoPartModel, scenes: ScenesWithBoxes, tmp_path: Path) -> None:
    class Interrupted(Damaged):
        def __getitem__(self, index: int) -> BoxedImage:
            if index == 50:
                raise KeyboardInterrupt
            return super().__getitem__(index)

    with pytest.raises(KeyboardInterrupt):
        extract(model, Interrupted(scenes), tmp_path, batch_size=16)
    features = extract(model, scenes, tmp_path, batch_size=16)
    with torch.no_grad():
        expected = model.backbone(scenes[60].image[None])
    torch.testing.assert_close(features.activations(torch.tensor([60])), expected)


def test_extraction_goes_on_after_the_last_whole_batch(
    model: TwoPartModel, scenes: ScenesWithBoxes, tmp_path: Path
) -> None:
    class Counted(Damaged):
        def __init__(self, stop: int | None = None, unreadable: frozenset[int] = frozenset()) -> None:
            super().__init__(scenes, set(unreadable), overflowing={5})
            self.stop = stop
            self.read: list[int] = []

        def __getitem__(self, index: int) -> BoxedImage:
            if index == self.stop:
                raise KeyboardInterrupt
            self.read.append(index)
            return super().__getitem__(index)

    kept: tuple[Kept, ...] = ("activations", "images")
    # A whole batch, 16 to 31, and the end of a later one cannot be read before the run is interrupted.
    broken = frozenset({*range(16, 32), 60})
    with pytest.raises(KeyboardInterrupt):
        extract(model, Counted(stop=101, unreadable=broken), tmp_path / "parts", kept, batch_size=16)
    # By now the files are whole again: what was left out stays left out.
    rest = Counted()
    parts = extract(model, rest, tmp_path / "parts", kept, batch_size=16)
    assert rest.read == list(range(96, 130))
    whole = extract(model, Damaged(scenes, set(broken), {5}), tmp_path / "whole", kept, batch_size=16)
    assert parts.skipped == whole.skipped
    assert parts.skipped.keys() == broken | {5}
    assert torch.equal(parts.items, whole.items)
    assert torch.equal(parts.embeddings, whole.embeddings)
    rows = torch.arange(len(whole))
    assert torch.equal(parts.activations(rows), whole.activations(rows))
    assert torch.equal(parts.images(rows), whole.images(rows))
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(parts.boxes, whole.boxes, strict=True))


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        # What torch makes of a full disk.
        RuntimeError("[enforce fail at inline_container.cc:671] . unexpected pos 704 vs 598"),
    ],
)
def test_a_full_disk_is_an_os_error_that_says_how_much_an_image_takes(
    error: Exception, model: TwoPartModel, scenes: ScenesWithBoxes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(value: object, path: Path) -> None:
        path.write_bytes(b"half a block")
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        with pytest.raises(
            OSError, match=r"features cannot be written.*(No space|unexpected pos).*0\.0\d MiB per item"
        ):
            extract(model, scenes, tmp_path / "features")
    assert len(extract(model, scenes, tmp_path / "features")) == 130


@pytest.mark.parametrize(("unreadable", "overflowing"), [({100, 129}, {101}), ({*range(96, 130)}, {5}), ({5}, {97})])
def test_an_item_that_may_not_be_left_out_stops_the_extraction_and_keeps_what_came_before(
    unreadable: set[int], overflowing: set[int], model: TwoPartModel, scenes: ScenesWithBoxes, tmp_path: Path
) -> None:
    class Counted(Damaged):
        def __init__(self, *damaged: set[int]) -> None:
            super().__init__(scenes, *damaged)
            self.read: list[int] = []

        def __getitem__(self, index: int) -> BoxedImage:
            self.read.append(index)
            return super().__getitem__(index)

    left_out = {5: "scene-5.jpg: corrupt", **dict.fromkeys(range(16, 32), "was corrupt")}
    broken = Counted(unreadable, overflowing)
    first = {100: "scene-100.jpg: corrupt", 96: "scene-96.jpg: corrupt", 97: "its features hold NaN"}
    reason = first[min((unreadable | overflowing) - {5})]
    with pytest.raises(ValueError, match=f"dataset: {reason}.*usable when this run began.*restore it"):
        extract(model, broken, tmp_path / "parts", batch_size=16, left_out=left_out)
    restored = Counted()
    parts = extract(model, restored, tmp_path / "parts", batch_size=16, left_out=left_out)
    assert restored.read == list(range(96, 130))
    assert parts.skipped == left_out
    whole = extract(model, scenes, tmp_path / "whole", batch_size=16, left_out=left_out)
    assert torch.equal(parts.embeddings, whole.embeddings)
    assert torch.equal(parts.items, whole.items)


def test_discarding_removes_the_files(model: TwoPartModel, scenes: ScenesWithBoxes, tmp_path: Path) -> None:
    extract(model, scenes, tmp_path / "features")
    discard(tmp_path / "features")
    assert not (tmp_path / "features").exists()
    discard(tmp_path / "features")
