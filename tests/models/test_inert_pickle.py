"""Files that hold objects: read without running them, or refused."""

from __future__ import annotations

import io
import os
import pickle
import re
import tarfile

import numpy as np
import pytest
import torch

from captum_fam.models import WeightsError, create_model, load_weights, read_memory_bank, read_state_dict
from captum_fam.models.checkpoints import read_checkpoint
from captum_fam.models.inert_pickle import Record, load_inert
from tests.models.file_writers import (
    Call,
    Global,
    Instance,
    Persistent,
    Python2Writer,
    lemniscate_modules,
    ordered_dict,
    python2_pickle,
    write_zip,
)

ARRAY = np.arange(12, dtype=np.float32).reshape(3, 4)


def write(kind, path, value):
    """The same object in the format before torch 1.6, or in the one since."""
    if kind == "legacy":
        return Python2Writer().write(path, value)
    return write_zip(path, python2_pickle(value))


def attacks(sentinel):
    """Ways to make a naive reader create a file, each with the name it needs."""
    command = f"echo > {sentinel}"
    code = f"open({str(sentinel)!r}, 'w')"
    return {
        "os.system": Call(Global("os", "system"), (command,)),
        "posix.system": Call(Global("posix", "system"), (command,)),
        "subprocess.check_call": Call(Global("subprocess", "check_call"), (["touch", str(sentinel)],)),
        "builtins.eval": Call(Global("builtins", "eval"), (code,)),
        "builtins.exec": Call(Global("builtins", "exec", stack=True), (code,)),
        "__builtin__.eval": Call(Global("__builtin__", "eval"), (code,)),
        "__builtin__.getattr": Call(Global("__builtin__", "getattr"), ("", "join")),
        "torch.hub.load": Call(Global("torch.hub", "load"), ("someone/repository", "model")),
        "torch.load": Call(Global("torch", "load"), (str(sentinel),)),
        "torch.storage._load_from_bytes": Call(Global("torch.storage", "_load_from_bytes"), ("",)),
        "pickle.loads": Call(Global("pickle", "loads"), (python2_pickle(0).decode("latin1"),)),
        "copy_reg._reconstructor": Call(Global("copy_reg", "_reconstructor"), ()),
        "functools.partial": Call(Global("functools", "partial"), (Global("os", "system"), command)),
        "subprocess.Popen": Call(Global("subprocess", "Popen"), (["touch", str(sentinel)],), new=True),
        "os.popen": Instance("os", "popen", (command,)),
        "lib.NCEAverage.NCEAverage.forward": Call(Global("lib.NCEAverage", "NCEAverage.forward"), ()),
        "torch.nn.modules.linear.Linear": Call(Global("torch.nn.modules.linear", "Linear"), (), {}, new=True),
        "sys.exit": Call(Global("lib.NCEAverage", "NCEAverage"), (), Call(Global("sys", "exit"), (1,)), new=True),
    }


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
    for target in (rebuild, Global("collections", "OrderedDict"), Global("lib.NCEAverage", "NCEAverage")):
        value = _build(target, (None, {"__defaults__": (1,), "memory": 7}))
        path = tmp_path / "a.pth"
        path.write_bytes(_legacy(value))
        try:
            load_inert(path)
        except ValueError:
            assert target.name == "OrderedDict"
    assert (vars(torch._utils._rebuild_tensor_v2), torch._utils._rebuild_tensor_v2.__defaults__) == before
    assert not hasattr(Record, "memory")
    clean = load_inert(Python2Writer().write(tmp_path / "b.pth", {"lemniscate": stained}))
    assert not hasattr(clean["lemniscate"], "memory")


def _build(target, state):
    return python2_pickle(target)[:-1] + python2_pickle(state)[2:-1] + b"b."


def _legacy(pickled):
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}
    head = b"".join(python2_pickle(part) for part in (0x1950A86A20F9469CFC6C, 1001, system))
    return head + pickled + python2_pickle([])


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
    elif kind in ("zip short", "zip compressed", "zip without storage"):
        storage = Persistent(("storage", Global("torch", "FloatStorage"), "0", "cpu", 12))
        tensor.arguments = (storage, 0, (3, 4), (4, 1))
        files = {"zip short": {"0": content[:-4]}, "zip compressed": {"0": content}}.get(kind, {})
        write_zip(path, python2_pickle(value), files, compress=kind == "zip compressed")
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
        "zip compressed",
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
