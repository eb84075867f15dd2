"""The one reader of weights: each of its abilities on files written for that."""

from __future__ import annotations

import sys
import warnings

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from captum_fam.models import Conv4Net, Layout, WeightsError, create_model, load_weights, read_state_dict
from tests.models.file_writers import Python2Writer


def randomize(module):
    """Where a fresh network has zeros and ones, any two layers could be swapped unseen."""
    for tensor in module.state_dict().values():
        if tensor.is_floating_point() and tensor.dim() < 2:
            tensor.copy_(torch.rand_like(tensor) * 0.4 + 0.8)
    return module.eval()


def prefixed(prefix, state):
    return {prefix + name: value for name, value in state.items()}


@pytest.mark.parametrize("container", ["state_dict", "model_state_dict", "model", "state", "embedding"])
def test_the_state_dict_is_found_where_training_scripts_put_it(tmp_path, container):
    state = nn.Linear(2, 3).state_dict()
    torch.save({container: state, "epoch": 3, "optimizer": {"param_groups": []}}, tmp_path / "a.pth")
    assert list(read_state_dict(tmp_path / "a.pth")) == ["weight", "bias"]


def test_wrappers_inside_a_name_are_left_out_on_both_sides(tmp_path):
    theirs = nn.Sequential(nn.DataParallel(nn.Linear(2, 3)), nn.ReLU())
    torch.save(theirs.state_dict(), tmp_path / "a.pth")
    plain = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
    load_weights(plain, tmp_path / "a.pth")
    assert torch.equal(plain[0].weight, theirs[0].module.weight)
    wrapped = nn.DataParallel(nn.Sequential(nn.Linear(2, 3), nn.ReLU()))
    load_weights(wrapped, tmp_path / "a.pth")
    assert torch.equal(wrapped.module[0].weight, theirs[0].module.weight)


def test_a_layout_picks_a_part_renames_it_and_ignores_the_rest():
    layout = Layout("theirs", rules=((r"^fc\.", "0."),), part="encoder.", ignored=r"queue")
    net, theirs = nn.Sequential(nn.Linear(2, 3)), nn.Linear(2, 3).state_dict()
    state = {**prefixed("encoder.fc.", theirs), "encoder.queue": torch.zeros(1), "head.weight": torch.zeros(1)}
    assert load_weights(net, state, [Layout("other"), layout]) is layout
    torch.testing.assert_close(dict(net.state_dict()), prefixed("0.", theirs))


class Versioned(nn.Module):
    """Notes the version of its weights, as modules do that bring old ones up to date."""

    _version = 3

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def _load_from_state_dict(self, state, prefix, local_metadata, *rest):
        self.seen = local_metadata.get("version")
        super()._load_from_state_dict(state, prefix, local_metadata, *rest)


@pytest.mark.parametrize(
    ("wrap", "version"),
    [(lambda net: net, 2), (nn.DataParallel, 2), (lambda net: nn.ModuleDict({"encoder": net}), 2)],
    ids=["plain", "DataParallel", "part"],
)
def test_modules_get_the_versions_that_the_file_has(tmp_path, wrap, version):
    old = nn.Sequential(Versioned())
    old[0]._version = version
    torch.save(wrap(old).state_dict(), tmp_path / "a.pth")
    net = nn.Sequential(Versioned())
    load_weights(net, tmp_path / "a.pth", [Layout("plain"), Layout("part", part="encoder.")])
    assert net[0].seen == version


def test_modules_take_a_plain_dictionary_for_new():
    net = nn.Sequential(Versioned())
    load_weights(net, dict(net.state_dict()))
    assert net[0].seen == 3


def test_safetensors_that_are_missing_are_asked_for(tmp_path, monkeypatch):
    (tmp_path / "a.safetensors").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ImportError, match=r'a\.safetensors needs safetensors: pip install "captum-fam\[models\]"'):
        read_state_dict(tmp_path / "a.safetensors")


def test_a_whole_pickled_module_is_refused_and_named(tmp_path):
    torch.save(nn.Linear(2, 2), tmp_path / "a.pth")
    with pytest.raises(WeightsError, match=r"a\.pth .* refused: it names torch\.nn\.modules\.linear\.Linear"):
        read_state_dict(tmp_path / "a.pth")


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize("wrap", ["", "module.", "_orig_mod.", "module._orig_mod."])
def test_our_own_weights_are_read_from_either_format_under_any_wrapper(tmp_path, suffix, wrap):
    net = randomize(Conv4Net())
    state = prefixed(wrap, net.state_dict())
    path = tmp_path / f"best{suffix}"
    save_file(state, path) if suffix == ".safetensors" else torch.save({"model": state}, path)
    found = create_model("conv4net", weights=str(path))
    assert found.layout == "captum-fam"
    torch.testing.assert_close(found.model.state_dict(), net.state_dict())
    assert {m.negative_slope for m in found.model.modules() if isinstance(m, nn.LeakyReLU)} == {0.1}


def test_files_older_than_the_counters_of_batch_normalization_are_read(tmp_path):
    net = randomize(Conv4Net())
    state = {name: value for name, value in net.state_dict().items() if "num_batches" not in name}
    writer = Python2Writer("cuda:3")
    path = writer.write(tmp_path / "best.pth.tar", {"state_dict": writer.state_dict(state), "epoch": 9})
    read = read_state_dict(path)
    assert list(read) == list(state)
    other = Conv4Net()
    load_weights(other, path)
    assert all(torch.equal(other.state_dict()[name], value) for name, value in state.items())


def test_missing_left_over_and_reshaped_parameters_are_listed_in_one_message(tmp_path):
    state = Conv4Net().state_dict()
    del state["features.3.1.bias"]
    state["features.0.0.weight"] = torch.zeros(64, 1, 3, 3)
    state["attention.weight"] = torch.zeros(2)
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(WeightsError) as failure:
        create_model("conv4net", weights=tmp_path / "a.pth")
    assert str(failure.value) == (
        f"weights {tmp_path / 'a.pth'} do not fit Conv4Net, read as of captum-fam: 1 missing: features.3.1.bias; "
        "1 unexpected: attention.weight; "
        "1 of another shape: features.0.0.weight (64, 1, 3, 3) instead of (64, 3, 3, 3)"
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"epoch": 3}, "hold no state dict of tensors: epoch"),
        ([torch.zeros(2)], "hold no state dict; save"),
        ({}, "hold no state dict; save"),
        ({"state_dict": {"a": 1.5, "b": torch.zeros(1)}}, "hold no state dict of tensors: a"),
    ],
)
def test_a_file_without_a_state_dict_says_so(tmp_path, content, message):
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(WeightsError, match=message):
        read_state_dict(tmp_path / "a.pth")


def test_a_missing_or_broken_file_is_named(tmp_path):
    with pytest.raises(WeightsError, match=r"none\.pth: no such file"):
        read_state_dict(tmp_path / "none.pth")
    (tmp_path / "a.safetensors").write_bytes(b"<html>")
    with pytest.raises(WeightsError, match=r"a\.safetensors cannot be read"):
        read_state_dict(tmp_path / "a.safetensors")


def test_reading_warns_of_nothing(tmp_path):
    torch.save(Conv4Net().state_dict(), tmp_path / "a.pth", _use_new_zipfile_serialization=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_state_dict(tmp_path / "a.pth")
