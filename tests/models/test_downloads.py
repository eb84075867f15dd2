"""Without a network, a download fails at once with what to do; what was downloaded before is used."""

from __future__ import annotations

import socket
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision import models

from captum_fam.models import WeightsError, create_model
from captum_fam.models.downloads import PATIENCE, check_reachable, hub, why_unreachable


class Network:
    """Stands for the network: it records each connection, and refuses it with an error or not."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int]] = []
        self.timeouts: list[float] = []
        self.error: OSError | None = OSError("network is unreachable")

    def connect(self, address: tuple[str, int], timeout: float, **_: Any) -> socket.socket:
        self.asked.append(address)
        self.timeouts.append(timeout)
        if self.error is not None:
            raise self.error
        return socket.socket()


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Network:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("HOME", str(tmp_path))
    found = Network()
    monkeypatch.setattr("socket.create_connection", found.connect)
    return found


def test_the_connection_is_tried_for_a_few_seconds(network: Network) -> None:
    assert why_unreachable("https://download.pytorch.org/models/a.pth") == (
        "download.pytorch.org cannot be reached (network is unreachable)"
    )
    assert network.asked == [("download.pytorch.org", 443)]
    assert network.timeouts == [PATIENCE]
    assert PATIENCE <= 5


def test_a_host_that_can_be_reached_is_no_problem(network: Network) -> None:
    network.error = None
    assert why_unreachable("http://localhost:8080/a") is None
    check_reachable("http://localhost:8080/a", "a model", "do this")
    assert network.asked[0] == ("localhost", 8080)


def test_a_proxy_is_asked_in_place_of_the_host(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "http://proxy.example:3128")
    monkeypatch.setenv("no_proxy", "inside.example")
    why_unreachable("https://download.pytorch.org/models/a.pth")
    why_unreachable("https://inside.example/a.pth")
    assert network.asked == [("proxy.example", 3128), ("inside.example", 443)]


def test_a_name_that_is_looked_up_for_ever_is_given_up(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    forever = threading.Event()

    def wait(*_: object, **__: object) -> None:
        forever.wait()
        raise OSError("given up")

    monkeypatch.setattr("socket.create_connection", wait)
    monkeypatch.setattr("captum_fam.models.downloads.PATIENCE", 0.01)
    assert why_unreachable("https://slow.example/a") == "slow.example cannot be reached within 0.01 s"
    forever.set()


@pytest.mark.parametrize(
    ("name", "library", "host"),
    [
        ("resnet18", "torchvision", "download.pytorch.org"),
        ("timm/resnet18.a1_in1k", "timm", "huggingface.co"),
        ("hf/facebook/dinov2-small", "transformers", "huggingface.co"),
        ("open_clip/RN50", "open_clip", "huggingface.co"),
    ],
)
def test_a_missing_download_fails_with_what_to_do(
    name: str, library: str, host: str, network: Network, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip(library)
    if library != "torchvision":
        constants = pytest.importorskip("huggingface_hub.constants")
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", "https://huggingface.co")
    with pytest.raises(WeightsError, match=rf"cannot download .*{host} cannot be reached .*; .*give a "):
        create_model(name, "DEFAULT")
    assert network.asked == [(host, 443)]
    if library != "torchvision":
        assert not constants.HF_HUB_OFFLINE


def test_another_endpoint_of_the_hub_is_asked(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "ENDPOINT", "https://mirror.example:8443")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with hub("a model", "do this") as is_online:
        assert not is_online
        assert constants.is_offline_mode()
    assert network.asked == [("mirror.example", 8443)]
    assert not constants.is_offline_mode()


def test_the_offline_mode_of_the_hub_asks_nobody(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    message = "cannot download a model: the hub is in offline mode; do this"
    with pytest.raises(WeightsError, match=message), hub("a model", "do this"):
        raise FileNotFoundError("not in the cache")
    assert network.asked == []
    assert constants.HF_HUB_OFFLINE


def test_an_error_that_is_none_of_the_network_stays(network: Network) -> None:
    pytest.importorskip("huggingface_hub")
    network.error = None
    with pytest.raises(RuntimeError, match="size mismatch"), hub("a model", "do this"):
        raise RuntimeError("size mismatch")


def test_a_file_of_an_earlier_download_needs_no_network(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = models.SqueezeNet1_1_Weights.DEFAULT
    target = Path(torch.hub.get_dir(), "checkpoints", Path(weights.url).name)
    target.parent.mkdir(parents=True)
    torch.manual_seed(0)
    made = models.squeezenet1_1().eval()
    torch.save(made.state_dict(), target)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *_, **__: torch.load(target))
    assert create_model("squeezenet1_1", "DEFAULT").name == "torchvision/squeezenet1_1"
    assert network.asked == []
