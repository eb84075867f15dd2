"""Files that hold objects: read without running them, or refused."""

from __future__ import annotations

import argparse
import collections
import datetime
import enum
import io
import os
import pathlib
import pickle
import re
import tarfile
import types
import zipfile

import numpy as np
import pytest
import torch

from captum_fam.models import WeightsError, create_model, load_weights, read_memory_bank, read_state_dict
from captum_fam.models.inert_pickle import load_inert
from captum_fam.models.inert_values import Budget, Record, RefusedError, as_key
from captum_fam.models.weights_file import read_checkpoint
from tests.models.file_writers import (
    Call,
    Global,
    Persistent,
    Python2Writer,
    lemniscate_modules,
    ordered_dict,
    python2_pickle,
    write_zip,
)
from tests.models.hostile_files import attacks, hostile_files, legacy, lying, zipped

ARRAY = np.arange(12, dtype=np.float32).reshape(3, 4)


def write(kind, path, value):
    """The same object in the format before torch 1.6, or in the one since."""
    if kind == "legacy":
        return Python2Writer().write(path, value)
    return write_zip(path, python2_pickle(value))


@pytest.mark.parametrize("name", list(attacks("")))
@pytest.mark.parametrize("kind", ["legacy", "zip"])
def test_a_file_that_names_something_to_run_is_refused_by_that_name_and_runs_nothing(tmp_path, kind, name):
    sentinel = tmp_path / "sentinel"
    attack = attacks(sentinel)[name]
    for value in (attack, {"state_dict": ordered_dict({"conv1.weight": attack})}, {"lemniscate": attack}):
        path = write(kind, tmp_path / "malicious.pth", value)
        for read in (
            load_inert,
            read_state_dict,
            lambda path: read_memory_bank(path, labels=[0]),
            lambda path: load_weights(torch.nn.Linear(1, 1), path),
        ):
            with pytest.raises(ValueError, match=f"refused: it names {re.escape(name)},"):
                read(path)
    assert not sentinel.exists()


@pytest.mark.parametrize("legacy", [False, True])
def test_an_attack_written_by_torch_itself_is_refused(tmp_path, legacy):
    class Attack:
        def __reduce__(self):
            return os.system, (f"echo > {tmp_path / 'sentinel'}",)

    torch.save({"lemniscate": Attack()}, tmp_path / "a.pth", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(WeightsError, match=r"refused: it names (posix|nt)\.system"):
        create_model("conv4net", weights=tmp_path / "a.pth")
    assert not (tmp_path / "sentinel").exists()


def test_a_bare_pickle_is_refused(tmp_path):
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(os.system, protocol=2))
    with pytest.raises(WeightsError, match=r"refused: it names (posix|nt)\.system"):
        read_checkpoint(tmp_path / "a.pkl")


def test_a_class_that_comes_with_its_source_code_is_refused_unless_it_is_known(tmp_path):
    attack = Persistent(("module", Global("os", "system"), "os.py", "import os"))
    with pytest.raises(WeightsError, match=r"refused: it names os\.system"):
        read_checkpoint(Python2Writer().write(tmp_path / "a.pth", attack))


def test_a_file_cannot_change_the_functions_that_read_it(tmp_path):
    rebuild = Global("torch._utils", "_rebuild_tensor_v2")
    before = vars(torch._utils._rebuild_tensor_v2).copy(), torch._utils._rebuild_tensor_v2.__defaults__
    # BUILD with (attributes, slots) sets whatever it is told on the object below it.
    stained = Call(
        Global("lib.NCEAverage", "NCEAverage"), (), ({}, {"__class__": Global("lib.NCEAverage", "NCEAverage")})
    )
    path = tmp_path / "a.pth"
    for target in (rebuild, Global("collections", "OrderedDict"), Global("lib.NCEAverage", "NCEAverage")):
        path.write_bytes(legacy(_build(target, (None, {"__defaults__": (1,), "memory": 7}))))
        with pytest.raises(ValueError, match="an operation that does not fit"):
            load_inert(path)
    assert (vars(torch._utils._rebuild_tensor_v2), torch._utils._rebuild_tensor_v2.__defaults__) == before
    assert not hasattr(Record, "memory")
    clean = load_inert(Python2Writer().write(tmp_path / "b.pth", {"lemniscate": stained}))
    assert not hasattr(clean["lemniscate"], "memory")


def _build(target, state):
    return python2_pickle(target)[:-1] + python2_pickle(state)[2:-1] + b"b."


@pytest.mark.parametrize("rebuild", ["_rebuild_tensor", "_rebuild_tensor_v2"])
@pytest.mark.parametrize("location", ["cpu", "cuda:0"])
def test_a_file_of_python_2_is_read_to_the_bit(tmp_path, rebuild, location):
    writer = Python2Writer(location, rebuild)
    double = np.linspace(-1, 1, 7)
    value = {
        "epoch": 200,
        "arch": "resnet18",
        "best_prec1": 41.0,
        "state_dict": writer.state_dict({"a.weight": torch.from_numpy(ARRAY), "a.bias": torch.from_numpy(double)}),
        "big": 2**70,
        "negative": -5,
        "text": "x" * 300,
        "lists": [1, (True, None)],
        "index": writer.tensor(np.array([3, -4])),
        "scalar": writer.tensor(np.array(2.5, dtype=np.float32)),
    }
    read = load_inert(writer.write(tmp_path / "a.pth", value))
    np.testing.assert_array_equal(read["state_dict"]["a.weight"].numpy(), ARRAY)
    np.testing.assert_array_equal(read["state_dict"]["a.bias"].numpy(), double)
    assert read["state_dict"]["a.bias"].dtype == torch.float64
    assert list(read["state_dict"]) == ["a.weight", "a.bias"]
    assert read["index"].tolist() == [3, -4]
    assert read["scalar"].shape == ()
    assert read["scalar"] == 2.5
    plain = {key: read[key] for key in ("epoch", "arch", "best_prec1", "big", "negative", "text", "lists")}
    assert plain == {key: value[key] for key in plain}


def test_tensors_that_share_a_storage_are_cut_out_of_it(tmp_path):
    writer = Python2Writer()
    whole = writer.tensor(ARRAY)
    (key,) = writer.storages
    transposed = writer.view(key, 0, (4, 3))
    transposed.arguments = (*transposed.arguments[:3], (1, 4))
    of_view = writer.view(key, 1, (2,))
    storage = Persistent(("storage", Global("torch", "FloatStorage"), key, "cpu", 12, ("view", 4, 8)))
    of_view.arguments = (storage, 1, (2,), (1,))
    path = writer.write(tmp_path / "a.pth", [whole, transposed, writer.view(key, 4, (2, 4)), of_view])
    whole, transposed, rows, of_view = load_inert(path)
    np.testing.assert_array_equal(transposed.numpy(), ARRAY.T)
    np.testing.assert_array_equal(rows.numpy(), ARRAY[1:])
    assert of_view.tolist() == [5, 6]


@pytest.mark.parametrize("legacy", [False, True])
def test_everything_that_torch_writes_of_tensors_is_read_as_torch_reads_it(tmp_path, legacy):
    base = torch.randn(4, 6)
    kinds = (torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8)
    values = [(100 * base).to(kind) for kind in kinds] + [base.byte(), base > 0]
    values += [base, base.T, base[1:, ::2], torch.empty(0, 3), torch.tensor(7.0)]
    values += [torch.nn.Parameter(base)]
    path = tmp_path / "a.pth"
    torch.save({"values": values}, path, _use_new_zipfile_serialization=not legacy)
    expected = torch.load(path, weights_only=True)["values"]
    for read, value in zip(load_inert(path)["values"], expected, strict=True):
        assert read.dtype == value.dtype
        assert torch.equal(read, value)


@pytest.mark.parametrize("legacy", [False, True])
def test_an_object_of_a_known_class_becomes_a_record_and_its_class_is_not_imported(tmp_path, legacy):
    memory = torch.randn(5, 4)
    with lemniscate_modules(tmp_path) as lib:
        value = {"lemniscate": lib.NCEAverage(memory, 0.07)}
        torch.save(value, tmp_path / "a.pth", _use_new_zipfile_serialization=not legacy)
    # Older torch stores the source of a class with it.
    assert ((tmp_path / "a.pth").read_bytes().count(b"class NCEAverage") == 1) == legacy
    (tmp_path / "lib" / "NCEAverage.py").write_text("raise SystemExit")
    found = load_inert(tmp_path / "a.pth")["lemniscate"]
    assert isinstance(found, Record)
    assert torch.equal(found._buffers["memory"], memory)
    assert torch.equal(found.multinomial.prob, torch.ones(5))


def damaged(kind, tmp_path):
    writer = Python2Writer()
    value = {"lemniscate": Call(Global("lib.NCEAverage", "NCEAverage"), (), new=True), "a": writer.tensor(ARRAY)}
    tensor = value["a"]
    (key,) = writer.storages
    path = tmp_path / f"{kind}.pth"
    content = ARRAY.tobytes()
    if kind == "cut":
        writer.write(path, value)
        path.write_bytes(path.read_bytes()[:-5])
    elif kind == "cut pickle":
        writer.write(path, value)
        path.write_bytes(path.read_bytes()[:120])
    elif kind == "beyond the storage":
        tensor.arguments = (tensor.arguments[0], 1, (3, 4), (4, 1))
        writer.write(path, value)
    elif kind == "huge storage":
        storage = Persistent(("storage", Global("torch", "FloatStorage"), key, "cpu", 2**50, None))
        tensor.arguments = (storage, 0, (3, 4), (4, 1))
        writer.write(path, value)
    elif kind == "other count":
        writer.write(path, value)
        path.write_bytes(path.read_bytes().replace(b"\x0c" + bytes(7), b"\x0b" + bytes(7)))
    elif kind in ("zip short", "zip without storage"):
        storage = Persistent(("storage", Global("torch", "FloatStorage"), "0", "cpu", 12))
        tensor.arguments = (storage, 0, (3, 4), (4, 1))
        write_zip(path, python2_pickle(value), {"0": content[:-4]} if kind == "zip short" else {})
    elif kind == "unknown reference":
        writer.write(path, Persistent(("socket", Global("lib.NCEAverage", "NCEAverage"))))
    elif kind == "text":
        path.write_text("404: Not Found")
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "tar":
        with tarfile.open(path, "w") as archive:
            archive.addfile(tarfile.TarInfo("storages"), io.BytesIO())
    elif kind == "torchscript":
        torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.rand(1, 2)), path)
    return path


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize(
    "kind",
    [
        "cut",
        "cut pickle",
        "beyond the storage",
        "huge storage",
        "other count",
        "zip short",
        "zip without storage",
        "unknown reference",
        "text",
        "empty",
        "tar",
        "torchscript",
    ],
)
def test_a_damaged_or_foreign_file_is_an_error_that_names_it(tmp_path, kind):
    path = damaged(kind, tmp_path)
    with pytest.raises(WeightsError, match="cannot be read") as failure:
        read_checkpoint(path)
    assert str(path) in str(failure.value)


class Color(enum.Enum):
    RED = 1


BESIDE = {
    "args": argparse.Namespace(lr=0.1, seeds=[1, 2]),
    "simple": types.SimpleNamespace(depth=3),
    "float64": np.float64(0.7),
    "int64": np.int64(-3),
    "bool": np.bool_(True),
    "array": np.arange(6, dtype=np.float32).reshape(2, 3),
    "big endian": np.arange(3, dtype=">i2"),
    "by columns": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "random": np.random.RandomState(0).get_state(),
    "path": pathlib.PurePosixPath("runs/1"),
    "windows": pathlib.PureWindowsPath("C:/runs"),
    "default": collections.defaultdict(list, loss=[0.5]),
    "counter": collections.Counter("aab"),
    "deque": collections.deque([1, 2], maxlen=5),
    "set": {1, "a"},
    "frozen": frozenset({2}),
    "day": datetime.date(2024, 2, 29),
    "moment": datetime.datetime(2024, 2, 29, 12, 30, 1, 5, tzinfo=datetime.timezone.utc),
    "duration": datetime.timedelta(days=1, seconds=2),
    "complex": 1 - 2j,
    "bytes": b"\x00\xff",
    "size": torch.Size([2, 3]),
    "dtype": torch.bfloat16,
    "device": torch.device("cuda", 1),
    "keys": {(0, "a"): 1, None: 2, 0.5: 3},
    "huge": 10**30,
}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("is_legacy", [False, True])
def test_what_training_scripts_store_beside_weights_is_read_as_data(tmp_path, is_legacy, protocol):
    weight = torch.rand(2, 3)
    value = {"state_dict": {"weight": weight}, "again": BESIDE["array"], **BESIDE}
    path = tmp_path / "a.pth"
    torch.save(value, path, pickle_protocol=protocol, _use_new_zipfile_serialization=not is_legacy)
    assert torch.equal(read_state_dict(path)["weight"], weight)
    read = read_checkpoint(path)
    assert isinstance(read["args"], Record)
    assert vars(read["args"]) == {"lr": 0.1, "seeds": [1, 2]}
    assert repr(read["args"]) == "Record of argparse.Namespace"
    assert vars(read["simple"]) == {"depth": 3}
    assert read["again"] is read["array"]
    for name, expected in BESIDE.items():
        if isinstance(expected, np.ndarray):
            np.testing.assert_array_equal(read[name], expected)
            assert read[name].dtype.newbyteorder("=") == expected.dtype.newbyteorder("=")
        elif name == "random":
            assert read[name][0] == "MT19937"
            np.testing.assert_array_equal(read[name][1], expected[1])
        elif name not in ("args", "simple"):
            assert read[name] == expected
            assert isinstance(read[name], type(expected)) or name in ("default", "counter")


def test_a_path_of_the_system_is_read_as_a_path_without_system(tmp_path):
    torch.save({"out": tmp_path}, tmp_path / "a.pth")
    assert read_checkpoint(tmp_path / "a.pth")["out"] == pathlib.PurePath(tmp_path)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.uint16, torch.complex64])
def test_tensors_without_a_storage_type_of_their_own_are_read(tmp_path, dtype):
    value = torch.arange(6).reshape(2, 3).to(torch.float32).to(dtype)
    torch.save({"a": value, "b": value[1:]}, tmp_path / "a.pth")
    read = read_checkpoint(tmp_path / "a.pth")
    assert read["a"].dtype == dtype
    assert torch.equal(
        read["b"].float() if dtype.is_floating_point else read["b"],
        value[1:].float() if dtype.is_floating_point else value[1:],
    )


def test_parameters_with_attributes_and_without_are_read_as_tensors(tmp_path):
    parameter = torch.nn.Parameter(torch.rand(2))
    parameter.tag = "a"
    torch.save([parameter, torch.nn.Parameter(torch.ones(3))], tmp_path / "a.pth")
    first, second = read_checkpoint(tmp_path / "a.pth")
    assert type(first) is type(second) is torch.Tensor
    assert torch.equal(first, parameter.detach())
    assert second.tolist() == [1, 1, 1]


@pytest.mark.parametrize("value", [Color.RED, Color, torch.nn.Linear(1, 1), np.array([None]), print])
def test_everything_else_is_refused_with_the_remedy(tmp_path, value):
    torch.save({"state_dict": {"a": torch.ones(1)}, "beside": value}, tmp_path / "a.pth")
    with pytest.raises(
        WeightsError, match=r"refused: it (names|holds an array) .*(save model.state_dict\(\) alone|of dtype O)"
    ):
        read_state_dict(tmp_path / "a.pth")


def test_a_compressed_file_is_read_and_one_that_grows_is_refused(tmp_path):
    storage = Persistent(("storage", Global("torch", "FloatStorage"), "0", "cpu", 12))
    tensor = Call(Global("torch._utils", "_rebuild_tensor"), (storage, 0, (3, 4), (4, 1)))
    path = write_zip(tmp_path / "a.pth", python2_pickle({"a": tensor}), {"0": ARRAY.tobytes()}, compress=True)
    np.testing.assert_array_equal(read_state_dict(path)["a"].numpy(), ARRAY)
    bomb = zipped(bytes(2_000_000), kind=zipfile.ZIP_DEFLATED)
    path.write_bytes(bomb)
    with pytest.raises(WeightsError, match=r"refused: its \d+ bytes inflate to 20000\d\d, more than 10 times"):
        read_state_dict(path)
    path.write_bytes(lying(bomb, 2_000_000, 10))
    with pytest.raises(WeightsError, match="cannot be read"):
        read_state_dict(path)
    path.write_bytes(zipped(bytes(100), kind=zipfile.ZIP_LZMA))
    with pytest.raises(WeightsError, match="refused: a zip archive whose compression has no bounds"):
        read_state_dict(path)


REFUSED = {
    "key of nested tuples, zip": r"refused: it has a key \(\(\(",
    "element of nested tuples, legacy": r"refused: it has a key \(\(\(",
    "key of a huge number, zip": "refused: it has a key 1694739631331732",
    "number of 2 GB, zip": "refused: it has a number of 2147483647 bytes",
    "number of 5000 digits, legacy": "refused: it has a number of 5000 digits",
    "copies of a set, zip": "refused: reading it takes more steps",
    "copies of an OrderedDict, legacy": "refused: reading it takes more steps",
    "copies of a text, zip": "refused: reading it takes more steps",
    "text of 16 EB, legacy": "the file ends within a pickle",
    "extension, zip": "an unknown operation 130",
    "tensor of 3.6 GB in 4 bytes, zip": r"refused: a tensor of \(30000, 30000\) has a storage of 1 elements",
    "tensor before its storage, legacy": "refused: a tensor of",
    "storage of -1, zip": "a storage has -1 elements",
    "storage of 2 ** 50, legacy": "is larger than the file",
    "array of objects, zip": "refused: it holds an array of NumPy of dtype O8",
    "escapes, zip": r"hold no state dict of tensors: \\x1b\[2J\\x1b\[H are no tensors",
    "numbers as keys, zip": "its keys are no names of parameters, the first is 1",
    "a hundred repetitions of a number": "refused: reading it takes more steps",
    "header of 90 MB": "its header claims 90000000 bytes, the file has 10",
    "safetensors of an unknown type": "safetensors that is cut off or damaged",
}


@pytest.mark.parametrize("name", list(REFUSED))
def test_a_file_made_to_take_time_or_memory_is_refused(tmp_path, name):
    path = tmp_path / "a.pth"
    path.write_bytes(HOSTILE[name])
    with pytest.raises(WeightsError, match=REFUSED[name]):
        read_state_dict(path)


HOSTILE = hostile_files()


def test_a_thousand_views_of_one_storage_take_the_memory_of_one(tmp_path):
    path = tmp_path / "a.pth"
    path.write_bytes(HOSTILE["a thousand views of a storage, zip"])
    read = read_state_dict(path)
    assert len(read) == 1000
    assert len({tensor.data_ptr() for tensor in read.values()}) == 1


def test_a_budget_is_used_up_exactly():
    budget = Budget(0)
    budget.spend(2**16)
    with pytest.raises(RefusedError, match="more steps"):
        budget.spend(1)


def test_keys_are_texts_numbers_and_a_few_of_these():
    for key in ("a", b"a", 0, -1, 0.5, None, True, (), (1, "a")):
        assert as_key(key) == key
    for key in (2**60, (2**60,), ((1,),), tuple(range(9)), torch.ones(1), [1]):
        with pytest.raises(RefusedError, match="refused: it has a key"):
            as_key(key)
