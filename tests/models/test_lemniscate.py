"""The network and the memory bank in one file of lemniscate."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torchvision import models
from torchvision.datasets import ImageFolder

from captum_fam import LayerFAM, SupportSet
from captum_fam.models import WeightsError, create_model, read_memory_bank
from tests.models.file_writers import Call, Global, Persistent, Python2Writer, lemniscate_modules, ordered_dict

MEMORY = F.normalize(torch.randn(6, 128, generator=torch.Generator().manual_seed(1)), dim=1)
LABELS = [0, 0, 1, 1, 1, 2]
SOURCE = "class {}(nn.Module):\n    def __init__(self, inputSize):\n        raise SystemExit('this is text')\n"


def python2_bank(writer, kind, alias_module="lib.alias_multinomial"):
    """A module object as Python 2 and torch 0.3 pickled it, source code and function backend included."""
    module = Persistent(("module", Global(f"lib.{kind}", kind), f"/home/someone/lib/{kind}.py", SOURCE.format(kind)))
    params = [4096.0, 0.07, -1.0, 0.5] if kind == "NCEAverage" else [0.1, 0.5]
    state = {
        "_backend": Call(Global("torch.nn.backends.thnn", "_get_thnn_function_backend"), ()),
        "_parameters": ordered_dict({}),
        "_buffers": ordered_dict(
            {"params": writer.tensor(torch.tensor(params).numpy()), "memory": writer.tensor(MEMORY.numpy())}
        ),
        "_backward_hooks": ordered_dict({}),
        "_forward_hooks": ordered_dict({}),
        "_forward_pre_hooks": ordered_dict({}),
        "_modules": ordered_dict({}),
        "training": True,
        "nLem": 6,
    }
    if kind == "NCEAverage":
        prob = writer.tensor(torch.ones(6).numpy())
        alias = writer.tensor(torch.zeros(6, dtype=torch.int64).numpy())
        state |= {
            "K": 4096,
            "unigrams": writer.tensor(torch.ones(6).numpy()),
            "multinomial": Call(Global(alias_module, "AliasMethod"), (), {"prob": prob, "alias": alias}, new=True),
        }
    return Call(module, (), state, new=True)


@pytest.fixture
def python2_file(tmp_path):
    def write(kind="NCEAverage", **options):
        writer = Python2Writer("cuda:0")
        value = {"lemniscate": python2_bank(writer, kind, **options)}
        return writer.write(tmp_path / f"{kind}.pth.tar", value)

    return write


@pytest.mark.parametrize(
    ("kind", "options", "temperature"),
    [
        ("NCEAverage", {}, 0.07),
        ("NCEAverage", {"alias_module": "alias_multinomial"}, 0.07),
        ("LinearAverage", {}, 0.1),
    ],
)
def test_the_bank_of_a_python_2_file_comes_out_with_its_temperature(python2_file, kind, options, temperature):
    bank = read_memory_bank(python2_file(kind, **options), labels=LABELS)
    assert torch.equal(bank.embeddings, MEMORY)
    assert bank.labels.tolist() == LABELS
    assert bank.temperature == temperature
    assert bank.k == 200


@pytest.mark.parametrize("kind", ["NCEAverage", "LinearAverage"])
@pytest.mark.parametrize("legacy", [True, False])
def test_the_bank_of_a_module_that_torch_itself_pickled_comes_out(tmp_path, kind, legacy):
    with lemniscate_modules(tmp_path) as lib:
        value = {"lemniscate": getattr(lib, kind)(MEMORY, 0.05), "epoch": 1}
        torch.save(value, tmp_path / "a.pth", _use_new_zipfile_serialization=not legacy)
    bank = read_memory_bank(tmp_path / "a.pth", labels=torch.tensor(LABELS), k=3)
    assert torch.equal(bank.embeddings, MEMORY)
    assert (bank.temperature, bank.k) == (0.05, 3)


def test_a_bank_saved_as_plain_tensors_comes_out(tmp_path):
    torch.save({"lemniscate": {"memory": MEMORY, "params": torch.tensor([0.07, 0.5])}}, tmp_path / "a.pth")
    assert read_memory_bank(tmp_path / "a.pth", LABELS, temperature=0.2).temperature == 0.2


def test_network_and_bank_of_one_file_explain_an_image_together(tmp_path):
    theirs = models.resnet18(num_classes=128).eval()
    state = nn.DataParallel(theirs).state_dict()
    state = {name: value for name, value in state.items() if "num_batches" not in name}
    assert "module.layer4.1.bn2.running_var" in state
    writer = Python2Writer("cuda:0")
    checkpoint = {
        "epoch": 200,
        "arch": "resnet18",
        "state_dict": writer.state_dict(state),
        "lemniscate": python2_bank(writer, "NCEAverage"),
        "best_prec1": 41.0,
        "optimizer": {"state": {}, "param_groups": []},
    }
    path = writer.write(tmp_path / "lemniscate_resnet18.pth.tar", checkpoint)
    net = create_model("npid_resnet18", weights=path)
    assert net.layout == "lemniscate"
    x = torch.rand(2, 3, 64, 50)
    with torch.no_grad():
        expected = theirs(x)
        torch.testing.assert_close(net.model(x), expected / expected.norm(dim=1, keepdim=True))
    bank = read_memory_bank(path, labels=LABELS)
    vote = bank.classify(expected)
    nearest = (expected / expected.norm(dim=1, keepdim=True) @ MEMORY.T).argmax(1)
    assert vote.neighbor_indices[:, 0].tolist() == nearest.tolist()
    fam = LayerFAM(net.model, net.layer, similarity=net.similarity, normalization="none")
    support = SupportSet(bank.embeddings, bank.labels, bank.class_names)
    assert fam.attribute(x, support=support, target=vote.predicted).shape == (2, 1, 2, 2)


@pytest.fixture
def class_folders(tmp_path):
    counts = {"n02": 2, "n10": 3, "n9": 1}
    for name, count in reversed(counts.items()):
        (tmp_path / "train" / name).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (2, 2)).save(tmp_path / "train" / name / f"{name}_{10 - i}.JPEG", "JPEG")
    (tmp_path / "train" / "n02" / "notes.txt").write_text("no image")
    return tmp_path / "train"


def test_labels_come_from_the_class_folders_in_the_order_of_imagefolder(python2_file, class_folders):
    bank = read_memory_bank(python2_file(), labels=class_folders)
    assert bank.class_names == ("n02", "n10", "n9")
    assert bank.labels.tolist() == LABELS == ImageFolder(class_folders).targets


@pytest.mark.parametrize("text", ["n02 2\nn10 3\nn9 1\n", "n02,2\r\nn10, 3\r\n\r\nn9,1"])
def test_labels_come_from_a_file_of_counts(tmp_path, python2_file, text):
    (tmp_path / "counts.txt").write_text(text)
    bank = read_memory_bank(python2_file(), labels=tmp_path / "counts.txt")
    assert bank.class_names == ("n02", "n10", "n9")
    assert bank.labels.tolist() == LABELS


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("n02 2\nn10 3\n", "has 5 images but the bank of .* 6 rows"),
        ("n10 3\nn02 2\nn9 1\n", "must be sorted by name"),
        ("n02 2\nn02 4\n", "must be sorted by name"),
        ("n02 two\n", "expected lines of a class name and a number"),
        ("6\n", "expected lines of a class name and a number"),
    ],
)
def test_labels_that_do_not_fit_the_rows_are_refused(tmp_path, python2_file, text, message):
    (tmp_path / "counts.txt").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_memory_bank(python2_file(), labels=tmp_path / "counts.txt")


def test_a_missing_folder_of_labels_is_named(tmp_path, python2_file):
    with pytest.raises(FileNotFoundError, match="no such folder or file"):
        read_memory_bank(python2_file(), labels=tmp_path / "train")


@pytest.mark.parametrize(
    "content",
    [
        {"state_dict": {"module.queue": torch.zeros(128, 16)}},
        {"lemniscate": {"memory": [1.0]}},
        [torch.zeros(1)],
    ],
)
def test_a_file_without_a_bank_says_how_to_make_one(tmp_path, content):
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(WeightsError, match=r"no memory bank of lemniscate; make one .* with MemoryBank\.from_dataset"):
        read_memory_bank(tmp_path / "a.pth", labels=[0])


@pytest.mark.parametrize(
    ("memory", "params", "message"),
    [
        (MEMORY[0], [0.07, 0.5], r"a memory bank \(128,\) of torch.float32, expected \(rows, J\)"),
        (MEMORY.long(), [0.07, 0.5], r"a memory bank \(6, 128\) of torch.int64"),
        (MEMORY / 0, [0.07, 0.5], "expected .* of finite floating-point numbers"),
        (MEMORY, [], r"hold \(0,\) parameters of a memory bank, expected 4 or 2"),
        (MEMORY, [1, 2], r"hold \(2,\) parameters of a memory bank"),
        (MEMORY, [0.0, 0.5], "a memory bank of temperature 0, expected a positive number"),
        (MEMORY, [1e-30, 0.5], "a memory bank of temperature 0, expected a positive number"),
        (MEMORY, [4096.0, float("nan"), -1.0, 0.5], "a memory bank of temperature nan"),
    ],
)
def test_a_bank_that_cannot_be_right_is_refused(tmp_path, memory, params, message):
    torch.save({"lemniscate": {"memory": memory, "params": torch.tensor(params)}}, tmp_path / "a.pth")
    with pytest.raises(WeightsError, match=message):
        read_memory_bank(tmp_path / "a.pth", LABELS)
