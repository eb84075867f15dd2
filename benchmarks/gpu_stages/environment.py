"""The machine of a run: card, driver, clocks, versions, and the packages that are missing."""

from __future__ import annotations

import json
import platform
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

# What the stages import; torch and torchvision are those of the machine.
PACKAGES = (
    "captum", "matplotlib", "numpy", "pillow", "pytest", "pytorch-metric-learning", "safetensors", "scipy",
    "torchcam", "torchmetrics", "tqdm",
)  # fmt: skip
GIVEN = ("torch", "torchvision")
_ASKED = "name,driver_version,memory.total,clocks.sm,clocks.mem,clocks.max.sm,power.limit,temperature.gpu,compute_mode"


def environment() -> dict[str, Any]:
    """Names and versions, each as far as it can be read without privileges."""
    found: dict[str, Any] = {"python": platform.python_version(), "platform": platform.platform()}
    found["versions"] = {name: installed(name) for name in (*GIVEN, *PACKAGES)}
    found["missing"] = [name for name, number in found["versions"].items() if number is None]
    found["nvidia_smi"] = _nvidia_smi()
    if found["versions"]["torch"] is not None:
        import torch

        found["cuda"] = torch.version.cuda
        found["cudnn"] = torch.backends.cudnn.version() if torch.backends.cudnn.is_available() else None
        found["cards"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        found["tf32"] = {
            "matmul": torch.backends.cuda.matmul.allow_tf32, "convolutions": torch.backends.cudnn.allow_tf32
        }  # fmt: skip
    return found


def look() -> dict[str, Any]:
    """The environment, looked at by another process: this one never holds a context on the GPU.

    Returns:
        What :func:`environment` gives; ``error`` if the process fails, as with a broken torch.
    """
    command = [sys.executable, "-m", "benchmarks.gpu_stages.environment"]
    ran = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    if ran.returncode:
        return {"error": ran.stderr[-2000:], "missing": [], "cards": []}
    found: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return found


def installed(name: str) -> str | None:
    """The version of an installed package; None if it is not installed.

    Args:
        name: name of the package.
    """
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def wheels() -> list[str]:
    """The packages that a bare machine with torch and torchvision needs, with those that they need in turn.

    Returns:
        ``NAME==VERSION`` of this machine, in alphabetical order.
    """
    given, wanted = _closure(GIVEN), _closure(PACKAGES)
    return [f"{name}=={installed(name)}" for name in sorted(wanted - given)]


def _closure(names: tuple[str, ...]) -> set[str]:
    """Packages and what they need, as far as it is installed here."""
    found: set[str] = set()
    waiting = [*names]
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name in found or installed(name) is None:
            continue
        found.add(name)
        # Needs that are for an extra, or for another system, stand behind a semicolon; what is not installed here
        # was not needed here.
        for need in requires(name) or []:
            if "extra ==" not in need:
                waiting.append(re.split(r"[ ;<>=!~\[(]", need, maxsplit=1)[0])
    return found


def _nvidia_smi() -> dict[str, str] | str:
    command = ["nvidia-smi", f"--query-gpu={_ASKED}", "--format=csv,noheader"]
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{type(error).__name__}: {error}"
    if ran.returncode:
        return (ran.stdout + ran.stderr).strip()[:300]
    return dict(zip(_ASKED.split(","), (part.strip() for part in ran.stdout.splitlines()[0].split(",")), strict=False))


if __name__ == "__main__":
    print(json.dumps(environment()))
