import json
from importlib import resources

import pytest
import torch

from captum_fam.demo import load_demo_network
from captum_fam.experiments.training.demo_network import main, measure_novel_accuracy


def stated_in_the_package():
    """How the network was trained and what it reached, as the file beside the weights says."""
    return json.loads(resources.files("captum_fam.demo").joinpath("conv4net.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def report():
    return measure_novel_accuracy(load_demo_network(), episodes=25, seed=123)


def test_packaged_weights_tell_novel_classes_apart(report):
    assert report.accuracy > 0.7


def test_accuracy_agrees_with_the_one_stated_in_the_package(report):
    stated = stated_in_the_package()
    assert stated["episodes"] >= 600
    assert stated["interval"] < 0.02
    assert abs(report.accuracy - stated["accuracy"]) < 2 * (report.interval + stated["interval"])


def test_map_with_foil_finds_the_shared_object_and_the_mean_activation_does_not(report):
    assert report.energy > 2 * report.object_area
    assert report.energy > 1.5 * report.energy_mean_activation


def test_an_untrained_network_does_far_worse(report):
    torch.manual_seed(0)
    untrained = measure_novel_accuracy(type(load_demo_network())().eval(), episodes=8, seed=123)
    assert untrained.accuracy < report.accuracy - 0.2


def test_network_is_in_eval_mode_and_float32():
    network = load_demo_network()
    assert not any(module.training for module in network.modules())
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}
    assert network(torch.rand(2, 3, 84, 100)).shape == (2, 64)


def test_two_loads_share_no_weights():
    one, other = load_demo_network(), load_demo_network()
    with torch.no_grad():
        one.features[0][0].weight.zero_()
    assert other.features[0][0].weight.abs().sum() > 0


def test_packaged_weights_are_small():
    assert len(resources.files("captum_fam.demo").joinpath("conv4net.pt").read_bytes()) < 1_000_000


def test_training_writes_weights_that_load_and_a_report_beside_them(tmp_path, capsys):
    main(["--steps", "3", "--scenes", "100", "--episodes", "2", "--out", str(tmp_path)])
    load_demo_network().load_state_dict(torch.load(tmp_path / "conv4net.pt", weights_only=True))
    made = json.loads((tmp_path / "conv4net.json").read_text())
    assert set(made) == set(stated_in_the_package())
    assert made["steps"] == 3
    assert "novel 5-way 1-shot" in capsys.readouterr().out
