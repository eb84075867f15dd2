"""A bank goes into a file and comes back; a bank of a data set survives its process."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.datasets import ImageFolder
from torchvision.transforms.functional import pil_to_tensor

from captum_fam.support.memory_bank import MemoryBank
from tests.support.banks import random_bank, random_queries
from tests.support.pictures import Pictures, build, embedder

# Files


def test_a_saved_bank_is_read_back_as_it_was(tmp_path):
    bank = random_bank(k=7, temperature=0.2, similarity="dot", neighbors="vote", class_names=list("abcdefgh"))
    bank = bank.to(dtype=torch.float16)
    bank.skipped = {600: "broken"}
    bank.save(tmp_path / "new" / "bank.safetensors")
    read = MemoryBank.load(tmp_path / "new" / "bank.safetensors")
    assert read.embeddings.equal(bank.embeddings)
    assert read.embeddings.dtype == torch.float16
    assert read.labels.equal(bank.labels)
    assert (read.k, read.temperature, read.neighbors, read.similarity_name) == (7, 0.2, "vote", "dot")
    assert read.class_names == tuple("abcdefgh")
    assert read.skipped == {600: "broken"}
    vote, again = bank.classify(random_queries()), read.classify(random_queries())
    assert again.class_scores.equal(vote.class_scores)
    assert MemoryBank.load(tmp_path / "new" / "bank.safetensors", k=3).k == 3


def test_saving_again_replaces_the_file_and_leaves_nothing_beside_it(tmp_path):
    path = tmp_path / "bank.safetensors"
    random_bank(rows=20).save(path)
    random_bank(rows=30).save(path)
    assert len(MemoryBank.load(path)) == 30
    assert list(tmp_path.iterdir()) == [path]


def test_a_measure_given_as_an_object_is_asked_for_again(tmp_path):
    measure = nn.CosineSimilarity()
    bank = MemoryBank(torch.eye(3), [0, 1, 2], similarity=measure)
    bank.save(tmp_path / "bank.safetensors")
    with pytest.raises(ValueError, match=r"similarity .*similarity=\.\.\."):
        MemoryBank.load(tmp_path / "bank.safetensors")
    again = MemoryBank.load(tmp_path / "bank.safetensors", similarity=measure)
    assert again.classify(torch.tensor([[0.0, 2.0, 0.1]])).predicted.tolist() == [1]


def test_a_file_that_is_no_bank_is_refused(tmp_path):
    from safetensors.torch import save_file

    with pytest.raises(FileNotFoundError, match=r"nowhere\.safetensors"):
        MemoryBank.load(tmp_path / "nowhere.safetensors")
    save_file({"weight": torch.ones(2)}, tmp_path / "weights.safetensors")
    with pytest.raises(ValueError, match=r"weights\.safetensors.*no memory bank"):
        MemoryBank.load(tmp_path / "weights.safetensors")
    path = tmp_path / "cut.safetensors"
    random_bank().save(path)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ValueError, match=r"cut\.safetensors: no memory bank, or damaged"):
        MemoryBank.load(path)


def test_a_failed_write_keeps_the_old_file_and_leaves_nothing_beside_it(tmp_path, monkeypatch):
    path = tmp_path / "bank.safetensors"
    random_bank(rows=20).save(path)
    whole = path.read_bytes()

    def full_disk(tensors, filename, metadata):
        Path(filename).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full_disk)
    with pytest.raises(OSError, match="No space left"):
        random_bank(rows=30).save(path)
    assert path.read_bytes() == whole
    assert list(tmp_path.iterdir()) == [path]


def test_safetensors_is_named_where_it_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ImportError, match=r'pip install "captum-fam\['):
        random_bank().save(tmp_path / "bank.safetensors")


# From a data set


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_bank_of_a_dataset_has_a_row_for_every_item_in_order(tmp_path, num_workers):
    dataset, model = Pictures(), embedder()
    with torch.no_grad():
        expected = model(dataset.images)
    for path in (None, tmp_path / "bank.safetensors"):
        bank = build(dataset, model, path, k=3, num_workers=num_workers)
        torch.testing.assert_close(bank.embeddings, expected)
        assert bank.labels.tolist() == [i % 4 for i in range(53)]
        assert bank.items.tolist() == list(range(53))
        assert bank.class_names == dataset.class_names
        assert bank.k == 3
    assert list(tmp_path.iterdir()) == [tmp_path / "bank.safetensors"]
    assert MemoryBank.load(tmp_path / "bank.safetensors").k == 3


@pytest.mark.parametrize("dies_at", [3, 16, 29, 52])
def test_an_interrupted_build_goes_on_where_it_ended(tmp_path, dies_at):
    path = tmp_path / "bank.safetensors"
    dying = Pictures(dies_at=dies_at, broken=[7, 17])
    with pytest.raises(KeyboardInterrupt):
        build(dying, path=path, on_error="skip")
    assert not path.exists()
    whole_batches = dies_at // 4 * 4
    second = Pictures(broken=[7, 17])
    with pytest.warns(UserWarning, match=r"could not be used: 2.* item 7"):
        bank = build(second, path=path, on_error="skip")
    # those of whole batches are not read again, but for the first four, which are compared
    again = {item for item in second.read if item < whole_batches}
    assert again <= {0, 1, 2, 3}
    assert bank.items.tolist() == [i for i in range(53) if i not in (7, 17)]
    assert sorted(bank.skipped) == [7, 17]
    with torch.no_grad():
        torch.testing.assert_close(bank.embeddings, embedder()(second.images)[bank.items])
    assert list(tmp_path.iterdir()) == [path]


def test_a_killed_process_loses_no_stored_piece(tmp_path):
    code = f"""
import os
from tests.support import pictures
class Killed(pictures.Pictures):
    def __getitem__(self, index):
        if index == 30:
            os._exit(9)  # no clean-up, as in a kill
        return super().__getitem__(index)
pictures.build(Killed(), path={str(tmp_path / "bank.safetensors")!r})
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 9
    assert not (tmp_path / "bank.safetensors").exists()
    dataset = Pictures()
    bank = build(dataset, path=tmp_path / "bank.safetensors")
    assert min(item for item in dataset.read if item > 3) == 24  # six batches of four had been stored
    assert bank.items.tolist() == list(range(53))


def test_a_finished_file_is_read_instead_of_made(tmp_path):
    path = tmp_path / "bank.safetensors"
    first = build(path=path)
    dataset = Pictures()
    again = build(dataset, path=path, k=2)
    assert again.embeddings.equal(first.embeddings)
    assert set(dataset.read) == {0, 1, 2, 3}
    assert again.k == 2


@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.parametrize("other", ["model", "labels", "length", "size"])
def test_work_of_another_model_or_dataset_is_never_taken_up(tmp_path, finished, other):
    path = tmp_path / "bank.safetensors"
    if finished:
        build(path=path)
    else:
        with pytest.raises(KeyboardInterrupt):
            build(Pictures(dies_at=20), path=path)
    dataset, model = Pictures(), embedder()
    if other == "model":
        model = embedder(1)
    elif other == "size":
        model = nn.Sequential(nn.Flatten(), nn.Linear(72, 6)).eval()
    elif other == "labels":
        dataset.__class__ = type("Relabeled", (Pictures,), {"__getitem__": lambda self, i: (self.images[i], 1)})
    else:
        dataset.size = 40
    with pytest.raises(ValueError, match=r"bank\.safetensors.* delete it"):
        build(dataset, model, path)


def test_a_build_stops_at_an_unreadable_item_unless_told_to_skip(tmp_path):
    path = tmp_path / "bank.safetensors"
    with pytest.raises(FileNotFoundError, match=r"31\.jpg"):
        build(Pictures(broken=[31]), path=path)
    repaired = Pictures()
    assert len(build(repaired, path=path)) == 53
    assert min(item for item in repaired.read if item > 3) == 28


def test_the_last_items_may_all_be_unreadable(tmp_path):
    path = tmp_path / "bank.safetensors"
    with pytest.raises(KeyboardInterrupt):
        build(Pictures(dies_at=48), path=path)
    for _ in range(2):  # said again when it is read from the file
        with pytest.warns(UserWarning, match="could not be used: 5"):
            bank = build(Pictures(broken=range(48, 53)), path=path, on_error="skip")
        assert bank.items.tolist() == list(range(48))


def test_a_dataset_of_unreadable_items_makes_no_bank_until_it_is_repaired(tmp_path):
    path = tmp_path / "bank.safetensors"
    with pytest.raises(ValueError, match=r"dataset.* 53 items .*0\.jpg"):
        build(Pictures(broken=range(53)), path=path, on_error="skip")
    assert len(build(path=path, on_error="skip")) == 53


def test_an_empty_dataset_makes_no_bank():
    with pytest.raises(ValueError, match=r"dataset.* 0 items .*empty"):
        build(Pictures(size=0))


def test_an_embedding_of_nan_names_the_item_and_loses_nothing(tmp_path):
    path = tmp_path / "bank.safetensors"
    model = embedder()
    poisoned = Pictures()
    poisoned.images[38] = math.nan
    with pytest.raises(ValueError, match=r"model.* item 38 .*NaN"):
        build(poisoned, model, path)
    healthy = Pictures()
    build(healthy, model, path)
    assert min(item for item in healthy.read if item > 3) == 36


def test_a_model_in_training_mode_is_refused():
    with pytest.raises(ValueError, match=r"model .*training mode.*model\.eval\(\)"):
        build(model=embedder().train())


def test_any_callable_embeds():
    bank = build(model=lambda images: images.mean((2, 3)))
    torch.testing.assert_close(bank.embeddings, Pictures().images.mean((2, 3)))


def test_nothing_of_the_caller_is_changed():
    model = embedder()
    state = torch.get_rng_state()
    build(model=model)
    assert torch.get_rng_state().equal(state)
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


def test_a_folder_of_torchvision_with_a_broken_image_makes_a_bank(tmp_path):
    for i in range(6):
        path = tmp_path / "train" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (6, 4), (40 * i, 0, 0)).save(path)
    (tmp_path / "train" / "b" / "3.png").write_bytes(b"no image")
    dataset = ImageFolder(str(tmp_path / "train"), transform=lambda image: pil_to_tensor(image).float())
    with pytest.warns(UserWarning, match="could not be used: 1"):
        bank = build(dataset, on_error="skip")
    assert bank.class_names == ("a", "b")
    assert bank.labels.tolist() == [0, 0, 0, 1, 1]
    assert bank.items.tolist() == [0, 1, 2, 3, 5]
