"""Photographs of the installed scikit-image, read where they lie: nothing is downloaded, and nothing is copied."""

from __future__ import annotations

from pathlib import Path

from captum_fam._files import need


def skimage_file(name: str) -> Path:
    """A file of data in the installed scikit-image.

    scikit-image itself downloads a file that its package lacks. This function does not.

    Args:
        name: name of the file, such as ``"brick.png"``.

    Returns:
        The file.

    Raises:
        ImportError: if scikit-image is not installed; the message has the command that installs it.
        FileNotFoundError: if the installed scikit-image does not hold the file.
    """
    package = need("skimage", extra="demo", purpose=name)
    file = Path(package.__file__).parent / "data" / name
    if not file.is_file():
        raise FileNotFoundError(
            f"scikit-image {package.__version__} at {file.parent.parent} lacks data/{name}, and nothing is downloaded; "
            "install the wheel: pip install --force-reinstall scikit-image"
        )
    return file
