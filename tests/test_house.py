"""Which room may know which: imports point from shell to core."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from captum_fam import functional

IMPORT = re.compile("(from|import) ")


def loaded_by(module: str) -> set[str]:
    code = f"import sys, {module}; print(*[name for name in sys.modules if name.startswith('captum_fam')])"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


def test_the_equations_know_nothing_of_the_package():
    imports = [line.split()[1] for line in Path(functional.__file__).read_text().splitlines() if IMPORT.match(line)]
    assert {name.partition(".")[0] for name in imports} == {"__future__", "torch"}


@pytest.mark.parametrize("room", ["data", "models", "protocols", "training", "cli", "demo", "metrics", "visualization"])
def test_importing_the_package_loads_none_of_its_shell(room):
    assert not [name for name in loaded_by("captum_fam") if name.split(".")[1:2] == [room]]


def test_importing_the_package_loads_no_optional_library():
    code = "import sys, captum_fam; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torchmetrics", "scipy", "faiss", "timm", "safetensors", "tensorboard"} & set(loaded)
