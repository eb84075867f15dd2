"""What is said where an optional package is missing."""

from __future__ import annotations


def missing_extra(package: str, error: ModuleNotFoundError) -> ModuleNotFoundError:
    """The error that names the extra with ``package``."""
    return ModuleNotFoundError(
        f'captum_fam.metrics needs {package}: pip install "captum-fam[eval]" ({error})', name=error.name
    )
