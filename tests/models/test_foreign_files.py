"""Files that hold no weights: each is called what it is, with what to do, and torch's advice is never repeated."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save

from captum_fam.models import WeightsError, create_model, load_weights, read_state_dict


def torch_file(legacy=False):
    buffer = io.BytesIO()
    torch.save({"weight": torch.arange(99.0)}, buffer, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()


def torchscript():
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), buffer)
    return buffer.getvalue()


def npz():
    buffer = io.BytesIO()
    np.savez(buffer, a=np.ones(3))
    return buffer.getvalue()


def tar(name):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo(name), io.BytesIO())
    return buffer.getvalue()


def zipped(name):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, "a")
    return buffer.getvalue()


def jpeg():
    buffer = io.BytesIO()
    Image.new("RGB", (3, 2)).save(buffer, "JPEG")
    return buffer.getvalue()


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 102530333\n"
ONNX = b"\x08\x07\x12\x07pytorch\x1a\x052.1.0:\xb2\x01\n"
FILES = {
    "empty": (b"", "it is empty; download or copy it again"),
    "HTML": (b"<!DOCTYPE html>\n<html><body>404</body></html>", "an HTML page, .* download the file itself"),
    "HTML in capitals": (b"\xef\xbb\xbf\n  <HTML><HEAD>", "an HTML page"),
    "XML": (
        b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>",
        "an XML document, as a failed download leaves, that begins with .<.xml",
    ),
    "git-LFS": (LFS, "a pointer of git-LFS instead of the file; run git lfs pull"),
    "git-annex": (b"../../.git/annex/objects/Xz/0g/SHA256E-s5.pth\n", "a pointer of git-annex .*; run git annex get"),
    "text": (b"404: Not Found", "a text that begins with '404: Not Found', no weights"),
    "text in UTF-8": ("Größe überschritten".encode() * 400, "a text that begins with 'Größe überschritten"),
    "text with escapes": (b"\x1b[2Jhello", r"a text that begins with '\\\\x1b\[2Jhello'"),
    "JSON": (b'{"error": "quota"}', "a JSON text"),
    "index": (b'{"metadata": {}, "weight_map": {"a": "b.safetensors"}}', "the index of weights .* hf/FOLDER"),
    "cut zip": (torch_file()[:-30], "a zip archive, as torch.save writes, that is cut off or damaged; download"),
    "cut legacy": (torch_file(True)[:-5], "the file ends within a tensor: it is cut off"),
    "cut pickle": (torch_file(True)[:150], "the file ends within a pickle: it is cut off"),
    "cut safetensors": (save({"a": torch.ones(9)})[:-1], "a file of safetensors that is cut off or damaged"),
    "cut header": (
        save({"a": torch.ones(9)})[:20],
        "of safetensors that is cut off .*its header claims 56 bytes, the file has 20",
    ),
    "huge header": ((2**63).to_bytes(8, "little") + b"{}", "its header claims 9223372036854775808 bytes"),
    "damaged storage": (torch_file().replace(np.arange(99, dtype="f4").tobytes(), bytes(396)), "Bad CRC-32"),
    "zeros": (bytes(5000), "it begins with 4096 zeros, as an interrupted download"),
    "TorchScript": (torchscript(), "a TorchScript archive, .* torch.jit.load, and save its state_dict"),
    "npz": (npz(), r"arrays of NumPy \(.npz\)"),
    "zip": (zipped("run/model.pth"), "a zip archive that torch.save did not write, of run/model.pth; unpack it"),
    "empty zip": (b"PK\x05\x06" + bytes(18), "an empty zip archive"),
    "tar of torch": (tar("sys_info"), r"a file of torch before 0.1.10 \(a tar archive\)"),
    "tar": (tar("model.pth"), "a tar archive that begins with model.pth; unpack it first"),
    "gzip": (gzip.compress(torch_file()), "compressed by gzip; decompress it"),
    "HDF5": (b"\x89HDF\r\n\x1a\n" + bytes(99), "an HDF5 file"),
    "npy": (b"\x93NUMPY\x01\x00" + bytes(99), "an array of NumPy"),
    "JPEG": (jpeg(), "a JPEG image"),
    "ONNX": (ONNX, "a model of ONNX or TensorFlow"),
    "TensorFlow Lite": (b"\x20\0\0\0TFL3" + bytes(99), "a model of TensorFlow Lite"),
    "pickle": (pickle.dumps({"weight": np.ones(3)}, protocol=4), "a pickle that torch.save did not write"),
    "bytes": (bytes(range(255, 200, -1)), "no file of torch.save or safetensors: it begins with the bytes ff fe fd fc"),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("kind", list(FILES))
def test_a_file_without_weights_is_called_what_it_is(tmp_path, kind, suffix):
    content, message = FILES[kind]
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=message) as failure:
        read_state_dict(path)
    text = str(failure.value)
    assert text.startswith(f"weights {path} cannot be read: ")
    assert text.isprintable()


@pytest.mark.parametrize("model", ["conv4net", "resnet18"])
@pytest.mark.parametrize("kind", ["HTML", "git-LFS", "cut zip", "TorchScript", "cut safetensors", "empty"])
def test_every_model_says_so_and_never_repeats_the_advice_of_torch(tmp_path, model, kind):
    (tmp_path / "a.pth").write_bytes(FILES[kind][0])
    with pytest.raises(WeightsError, match=FILES[kind][1]) as failure:
        create_model(model, tmp_path / "a.pth")
    assert "weights_only" not in str(failure.value)


def test_a_folder_lists_the_files_of_weights_in_it(tmp_path):
    with pytest.raises(WeightsError, match=r"is a folder; give a file of weights$"):
        read_state_dict(tmp_path)
    for name in ("b.safetensors", "a.bin", "config.json"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(WeightsError, match=r"is a folder; give a file in it: a\.bin, b\.safetensors$"):
        load_weights(torch.nn.Linear(1, 1), tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names")
def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.pth")
    with pytest.raises(WeightsError, match="no file but a pipe or a device"):
        read_state_dict(tmp_path / "a.pth")


def test_a_path_that_cannot_exist_is_no_file(tmp_path):
    for name in ("a" * 5000, "a\0b", "no\x1b[2J", "a" * 5000 + "#teacher"):
        with pytest.raises(WeightsError, match="no such file") as failure:
            read_state_dict(tmp_path / name)
        assert str(failure.value).isprintable()


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="nothing is forbidden here")
def test_a_file_that_may_not_be_read_is_named(tmp_path):
    (tmp_path / "a.pth").write_bytes(torch_file())
    (tmp_path / "a.pth").chmod(0)
    with pytest.raises(WeightsError, match=r"a\.pth cannot be read: .*Permission denied"):
        read_state_dict(tmp_path / "a.pth")
