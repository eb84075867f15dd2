"""Models of other packages, found by their entry points."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from captum_fam.models import create_model, list_models, register_model


@pytest.fixture
def install(tmp_path, monkeypatch):
    """``install(package, entry_points, **modules)`` as pip would lay it out."""

    def install(package, entry_points, **modules):
        folder = tmp_path / package
        metadata = folder / f"{package}-1.0.dist-info"
        metadata.mkdir(parents=True)
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        lines = "".join(f"{name} = {module}\n" for name, module in entry_points.items())
        (metadata / "entry_points.txt").write_text(f"[captum_fam.models]\n{lines}")
        for name, code in modules.items():
            (folder / f"{name}.py").write_text(code)
        monkeypatch.syspath_prepend(folder)
        return folder

    return install


NETWORK = """
from captum_fam.models import EmbeddingNet, register_model
from captum_fam.pooling import GAP
from torch import nn

@register_model({name!r}, size=40)
class Network(EmbeddingNet):
    def __init__(self):
        super().__init__(nn.Conv2d(3, 7, 3), GAP())
"""


def test_the_module_of_a_declared_name_is_imported_when_the_name_is_asked_for(install):
    install("ep_lazy", {"ep-lazy": "ep_lazy_networks"}, ep_lazy_networks=NETWORK.format(name="ep-lazy"))
    assert "ep-lazy" in list_models()
    assert "ep_lazy_networks" not in sys.modules
    net = create_model("ep-lazy")
    assert (net.name, net.size, net.layer) == ("ep-lazy", 40, "features")


def test_a_broken_package_is_named_when_its_model_is_asked_for_and_never_before(install):
    install("ep_broken", {"ep-broken": "ep_broken_networks"}, ep_broken_networks="import no_such_library")
    assert "ep-broken" in list_models()
    assert create_model("resnet12").name == "resnet12"
    with pytest.raises(ImportError, match=r"'ep-broken': .*ep_broken_networks of ep_broken .*no_such_library"):
        create_model("ep-broken")


def test_a_package_that_was_repaired_is_found_without_a_restart(install):
    code = NETWORK.format(name="ep-repaired")
    folder = install("ep_repaired", {"ep-repaired": "ep_repaired_networks"}, ep_repaired_networks=code + "\n1 / 0\n")
    for _ in range(2):  # not that the name is taken
        with pytest.raises(ImportError, match="ZeroDivisionError"):
            create_model("ep-repaired")
    (folder / "ep_repaired_networks.py").write_text(code)
    assert create_model("ep-repaired").name == "ep-repaired"


def test_a_module_that_does_not_register_its_declared_name_is_named(install):
    install("ep_silent", {"ep-silent": "ep_silent_networks"}, ep_silent_networks="")
    with pytest.raises(ImportError, match=r"ep_silent_networks of ep_silent registers no model"):
        create_model("ep-silent")


def test_two_packages_with_one_name_are_both_named(install):
    for package in ("ep_one", "ep_two"):
        install(package, {"ep-twice": f"{package}_networks"}, **{f"{package}_networks": ""})
    assert list_models().count("ep-twice") == 1
    with pytest.raises(ImportError, match=r"several packages \(.*ep_two.*ep_one.*uninstall"):
        create_model("ep-twice")


def test_an_earlier_record_of_a_package_does_not_hide_its_names(install):
    folder = install("ep_stale", {"ep-stale": "ep_stale_networks"}, ep_stale_networks=NETWORK.format(name="ep-stale"))
    record = install("ep_clone", {}) / "ep_stale.egg-info"  # before the installation on the path
    record.mkdir()
    (record / "PKG-INFO").write_text((folder / "ep_stale-1.0.dist-info" / "METADATA").read_text())
    (record / "entry_points.txt").write_text("[console_scripts]\nep = ep:main\n")
    assert create_model("ep-stale").name == "ep-stale"


def test_a_declared_name_is_taken(install):
    install("ep_first", {"ep-first": "ep_first_networks"}, ep_first_networks=NETWORK.format(name="ep-first"))
    with pytest.raises(ValueError, match=r"'ep-first' is taken by the entry point .* of ep_first"):
        register_model("ep-first", lambda: None)
    assert create_model("ep-first").size == 40


def test_torchvisions_names_cannot_be_declared(install):
    install("ep_shadow", {"resnet18": "ep_shadow_networks"}, ep_shadow_networks="1 / 0")
    assert create_model("resnet18").name == "torchvision/resnet18"


def test_listing_and_importing_the_models_loads_neither_experiments_nor_libraries():
    code = "import sys, captum_fam.models as m; m.list_models(); print(*sys.modules)"
    root = Path(__file__).parents[2]
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    loaded = set(run.stdout.split())
    assert not {"captum_fam.experiments", "torchvision", "timm", "safetensors"} & loaded
