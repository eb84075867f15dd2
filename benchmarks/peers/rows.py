"""All rows of the comparison whose packages are installed."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from benchmarks.peers import ours, with_captum, with_grad_cam, with_torchcam, with_xaitk, with_zennit
from benchmarks.peers.question import Row

# By package: the module that has to be there, and how it gets there.
PACKAGES = {
    "captum-fam": ("captum_fam", "captum-fam"),
    "captum": ("captum", "captum"),
    "grad-cam": ("pytorch_grad_cam", "grad-cam"),
    "torchcam": ("torchcam", "torchcam"),
    "xaitk-saliency": (
        "xaitk_saliency",
        "--target runs/peers-site --no-deps xaitk-saliency smqtk-core smqtk-detection smqtk-classifier "
        'smqtk-dataprovider smqtk-descriptors smqtk-image-io "setuptools<82"',
    ),
    "zennit": ("zennit", "zennit"),
}
_MODULES = (ours, with_captum, with_grad_cam, with_torchcam, with_xaitk, with_zennit)


def all_rows() -> tuple[Row, ...]:
    """The rows of installed packages, and of maps that know no support."""
    absent = missing()
    return tuple(row for module in _MODULES for row in module.ROWS if row.package not in absent)


def missing() -> dict[str, str]:
    """How to install each package that is not there, by its name."""
    return {name: f"pip install {pip}" for name, (module, pip) in PACKAGES.items() if find_spec(module) is None}


def versions() -> str:
    """Installed packages with their versions, in a sentence."""
    found = []
    for name in PACKAGES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)
