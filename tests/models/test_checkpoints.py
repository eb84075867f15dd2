"""The one reader of weights: each of its abilities on files written for that."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections import OrderedDict

import numpy as np
import pytest
import torch
from safetensors.torch import save, save_file
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
    save_file({"weight": torch.zeros(1)}, tmp_path / "a.safetensors")
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
        ({1: torch.zeros(1)}, "its keys are no names of parameters, the first is 1; save model"),
        ({"state_dict": {1: torch.zeros(1)}}, "its keys are no names of parameters, the first is 1; save model"),
    ],
)
def test_a_file_without_a_state_dict_says_so(tmp_path, content, message):
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(WeightsError, match=message):
        read_state_dict(tmp_path / "a.pth")


def test_a_missing_or_broken_file_is_named(tmp_path):
    with pytest.raises(WeightsError, match=r"none\.pth: no such file"):
        read_state_dict(tmp_path / "none.pth")
    content = save({"weight": torch.zeros(9)})
    (tmp_path / "a.safetensors").write_bytes(content[:-1])
    with pytest.raises(WeightsError, match=r"a\.safetensors cannot be read: a file of safetensors that is cut off"):
        read_state_dict(tmp_path / "a.safetensors")


@pytest.mark.parametrize("is_safetensors", [True, False])
def test_the_content_of_a_file_counts_and_not_its_suffix(tmp_path, is_safetensors):
    state = {"weight": torch.rand(2, 3)}
    path = tmp_path / ("a.pth" if is_safetensors else "a.safetensors")
    save_file(state, path) if is_safetensors else torch.save(state, path)
    assert torch.equal(read_state_dict(path)["weight"], state["weight"])


def test_reading_warns_of_nothing(tmp_path):
    torch.save(Conv4Net().state_dict(), tmp_path / "a.pth", _use_new_zipfile_serialization=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_state_dict(tmp_path / "a.pth")


class Net(nn.Module):
    """A network whose classifier has been replaced, as of embedding models."""

    def __init__(self, width=3):
        super().__init__()
        self.layer1 = nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width))
        self.layer2 = nn.Linear(width, 5)
        self.fc = nn.Identity()


def fresh(seed=0):
    """Weights in which no two tensors are the same, in a network without classifier."""
    torch.manual_seed(seed)
    return randomize(Net()).state_dict()


def loaded(content, path, part="", model=None):
    torch.save(content, path)
    model = model or Net()
    return load_weights(model, f"{path}{part}"), model


def is_loaded(model, state):
    return all(torch.equal(model.state_dict()[name], value) for name, value in state.items())


CONTAINERS = "teacher student state_dict state_dict_ema model_ema net network ema module encoder params_ema generator"


@pytest.mark.parametrize("container", CONTAINERS.split())
def test_the_network_is_found_under_any_key_and_the_key_is_named(tmp_path, container):
    content = {"epoch": 3, "args": argparse.Namespace(lr=1), "best": np.float64(0.5), container: fresh()}
    layout, model = loaded(content, tmp_path / "a.pth")
    assert is_loaded(model, fresh())
    usual = ("state_dict", "net", "network", "module")
    assert layout.name == ("captum-fam" if container in usual else f"captum-fam, {container}")


@pytest.mark.parametrize(
    ("prefix", "named"),
    [
        ("encoder.", "encoder."),
        ("encoder_q.", "encoder_q."),
        ("base_encoder.", "base_encoder."),
        ("backbone.", "backbone."),
        ("trunk.", "trunk."),
        ("model.", "model."),
        ("net.", "net."),
        ("module.encoder_q.", "encoder_q."),
        ("_orig_mod.module.backbone.", "backbone."),
        ("model.backbone.net.", "model.backbone.net."),
    ],
)
def test_the_network_is_found_under_any_prefix_and_the_prefix_is_named(tmp_path, prefix, named):
    head = {"module.head.weight": torch.zeros(2), f"{prefix}fc.0.weight": torch.zeros(4, 4), "queue": torch.zeros(2)}
    layout, model = loaded({"state_dict": {**prefixed(prefix, fresh()), **head}}, tmp_path / "a.pth")
    assert is_loaded(model, fresh())
    assert layout.name == f"captum-fam, prefix {named}"


def test_key_and_prefix_together_are_named_and_layouts_apply_below_them(tmp_path):
    content = {"teacher": prefixed("module.backbone.", fresh()), "center": torch.zeros(1)}
    layout, model = loaded(content, tmp_path / "a.pth")
    assert layout.name == "captum-fam, teacher, prefix backbone."
    assert is_loaded(model, fresh())
    theirs = {name.replace("layer2", "last"): value for name, value in fresh().items()}
    torch.save({"state_dict": prefixed("model.", theirs)}, tmp_path / "b.pth")
    model = Net()
    layouts = [Layout("other", part="base."), Layout("theirs", rules=((r"^last\.", "layer2."),))]
    assert load_weights(model, tmp_path / "b.pth", layouts).name == "theirs, prefix model."
    assert is_loaded(model, fresh())


def test_of_two_different_networks_in_a_file_the_user_chooses(tmp_path):
    content = {name: prefixed("module.backbone.", fresh(seed)) for seed, name in enumerate(("student", "teacher"))}
    path = tmp_path / "a.pth"
    with pytest.raises(WeightsError) as failure:
        loaded(content, path)
    assert str(failure.value) == (
        f"weights {path} hold several networks that fit Net: student.backbone, teacher.backbone; "
        f"choose one with {path}#student.backbone"
    )
    with pytest.raises(WeightsError, match=r"hold several state dicts: student, teacher; choose one with .*#teacher"):
        read_state_dict(path)
    for seed, part in ((0, "#student"), (1, "#teacher"), (1, "#teacher.backbone"), (0, "#student.backbone")):
        layout, model = loaded(content, path, part)
        assert is_loaded(model, fresh(seed))
        assert layout.name == f"captum-fam, {part[1:8]}, prefix backbone."
    assert torch.equal(read_state_dict(f"{path}#teacher")["backbone.layer2.bias"], fresh(1)["layer2.bias"])
    for read in (read_state_dict, lambda path: load_weights(Net(), path)):
        with pytest.raises(WeightsError, match=r"hold no teach(;|,) .*teacher"):
            read(f"{path}#teach")


def test_a_moving_average_beside_the_network_is_not_taken_silently(tmp_path):
    content = {"state_dict": fresh(0), "state_dict_ema": fresh(1)}
    with pytest.raises(WeightsError, match=r"state_dict, state_dict_ema; choose one with .*#state_dict$"):
        loaded(content, tmp_path / "a.pth")
    with pytest.raises(WeightsError, match="several state dicts: state_dict, state_dict_ema"):
        read_state_dict(tmp_path / "a.pth")
    assert is_loaded(loaded(content, tmp_path / "a.pth", "#state_dict")[1], fresh(0))
    assert is_loaded(loaded(content, tmp_path / "a.pth", "#state_dict_ema")[1], fresh(1))
    same = {"state_dict": fresh(0), "state_dict_ema": fresh(0)}
    layout, model = loaded(same, tmp_path / "a.pth")
    assert is_loaded(model, fresh(0))
    assert layout.name == "captum-fam"
    assert read_state_dict(tmp_path / "a.pth").keys() == fresh().keys()


def test_of_two_encoders_of_moco_the_query_encoder_is_taken(tmp_path):
    both = {**prefixed("module.encoder_k.", fresh(1)), **prefixed("module.encoder_q.", fresh(0))}
    layout, model = loaded({"state_dict": both}, tmp_path / "a.pth")
    assert layout.name == "captum-fam, prefix encoder_q."
    assert is_loaded(model, fresh(0))
    assert is_loaded(loaded({"state_dict": both}, tmp_path / "a.pth", "#encoder_k")[1], fresh(1))


def test_two_prefixes_that_fit_are_an_error(tmp_path):
    state = {**prefixed("left.", fresh(0)), **prefixed("right.", fresh(1))}
    with pytest.raises(WeightsError, match=r"that fit Net: left, right; choose one with .*#left$"):
        loaded(state, tmp_path / "a.pth")
    with pytest.raises(WeightsError, match=r"that fit Net: left, right; give one of them$"):
        load_weights(Net(), state)


def test_a_path_with_a_number_sign_is_a_path(tmp_path):
    torch.save(fresh(), tmp_path / "run#3.pth")
    load_weights(Net(), tmp_path / "run#3.pth")
    with pytest.raises(WeightsError, match=r"none\.pth: no such file"):
        read_state_dict(tmp_path / "none.pth#teacher")


def test_the_state_of_an_optimizer_is_no_network(tmp_path):
    net = nn.Sequential(nn.Linear(2, 2))
    optimizer = torch.optim.Adam(net.parameters())
    net(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    torch.save({"optimizer": optimizer.state_dict(), "weights": net.state_dict()}, tmp_path / "a.pth")
    assert list(read_state_dict(tmp_path / "a.pth")) == ["0.weight", "0.bias"]


def test_only_a_classifier_that_the_network_has_removed_is_ignored():
    load_weights(Net(), {**fresh(), "fc.weight": torch.zeros(2, 5), "fc.bias": torch.zeros(2)})
    for name in ("layer3.weight", "fc2.weight", "layer1.2.weight"):
        with pytest.raises(WeightsError, match=f"1 unexpected: {name}"):
            load_weights(Net(), {**fresh(), name: torch.zeros(2)})


def test_what_does_not_fit_under_a_prefix_is_listed_with_the_prefix():
    with pytest.raises(WeightsError) as failure:
        load_weights(Net(), prefixed("encoder.", {**fresh(), "layer2.bias": torch.zeros(6)}))
    assert str(failure.value) == (
        "weights do not fit Net, read as of captum-fam, prefix encoder.: "
        "1 of another shape: encoder.layer2.bias (6,) instead of (5,)"
    )


def test_versions_of_modules_are_kept_under_a_prefix():
    old = nn.Sequential(Versioned())
    old[0]._version = 2
    net = nn.Sequential(Versioned())
    load_weights(net, nn.ModuleDict({"trunk": nn.ModuleDict({"net": old})}).state_dict())
    assert net[0].seen == 2


def test_versions_that_are_none_are_left_out(tmp_path):
    state = OrderedDict(fresh())
    state._metadata = OrderedDict({"": {"version": 1}, "layer1.1": {"version": "2"}, "layer2": 7})
    layout, _ = loaded(state, tmp_path / "a.pth")
    assert layout.name == "captum-fam"


@pytest.mark.parametrize("name", ["layer1.0.weight", "layer1.1.running_var", "layer2.bias"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_nan_and_inf_are_refused_by_name(tmp_path, name, value):
    state = fresh()
    state[name].view(-1)[-1] = value
    with pytest.raises(WeightsError, match=rf"a\.pth hold NaN or inf in {name}; take the file of an earlier epoch"):
        loaded(state, tmp_path / "a.pth")


def test_a_number_that_is_inf_only_in_the_network_is_refused():
    with pytest.raises(WeightsError, match=r"hold NaN or inf in layer2\.bias"):
        load_weights(Net(), {**fresh(), "layer2.bias": torch.full((5,), 1e300, dtype=torch.float64)})


def test_a_buffer_may_hold_inf_but_not_nan():
    net = Net()
    net.register_buffer("mask", torch.zeros(2))
    load_weights(net, {**fresh(), "mask": torch.tensor([0.0, -torch.inf])})
    assert net.mask.tolist() == [0, -torch.inf]
    with pytest.raises(WeightsError, match="NaN or inf in mask"):
        load_weights(net, {**fresh(), "mask": torch.tensor([0.0, torch.nan])})


@pytest.mark.parametrize("dtype", [torch.complex64, torch.int32, torch.bool])
def test_numbers_of_another_kind_are_refused_by_name(dtype):
    with pytest.raises(WeightsError, match=rf"1 of another kind: layer2\.bias {dtype} instead of torch\.float32"):
        load_weights(Net(), {**fresh(), "layer2.bias": torch.ones(5).to(dtype)})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_floating_point_numbers_of_another_precision_are_taken(dtype):
    net = Net()
    load_weights(
        net, {name: value.to(dtype) if value.is_floating_point() else value for name, value in fresh().items()}
    )
    torch.testing.assert_close(net.layer2.weight.detach(), fresh()["layer2.weight"].to(dtype).float())


def test_weights_that_are_all_zero_are_refused(tmp_path):
    zero = {name: torch.zeros_like(value) for name, value in fresh().items()}
    with pytest.raises(WeightsError, match=r"a\.pth are all zero"):
        loaded(zero, tmp_path / "a.pth")
    zero["layer2.weight"] += 1
    loaded(zero, tmp_path / "a.pth")


def test_names_that_act_on_a_terminal_or_are_huge_are_not_printed(tmp_path):
    state = {"\x1b[2J\x1b[H": torch.zeros(1), "k" * 10_000_000: torch.zeros(1), "a\nb": torch.zeros(1)}
    for content in (
        state,
        {"state_dict": {**state, "epoch": 3, "\x07": 4}},
        {"\x1b[2J": fresh(0), "x" * 9999: fresh(1)},
    ):
        with pytest.raises(WeightsError) as failure:
            loaded(content, tmp_path / "a.pth")
        assert str(failure.value).isprintable()
        assert len(str(failure.value)) < 2500


def test_two_names_that_differ_in_wrappers_alone_stay_two_names(tmp_path):
    state = {**fresh(0), **prefixed("module.", fresh(1))}
    net = Net()
    assert load_weights(net, state).name == "captum-fam, prefix module."
    assert is_loaded(net, fresh(1))
    torch.save(state, tmp_path / "a.pth")
    assert len(read_state_dict(tmp_path / "a.pth")) == len(state)
