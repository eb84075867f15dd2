"""Writing results so that a reader never meets half of one."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MANIFEST = "manifest.json"


@contextmanager
def staged(folder: str | Path) -> Iterator[Path]:
    """A scratch folder whose files move to ``folder`` when the block ends, and vanish when it raises.

    A manifest moves last, after the one of an earlier run is gone: where it stands, the files it lists are there.
    Files of the same name are replaced, all others left alone.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    # Inside the folder, because a move is atomic within one file system only.
    with tempfile.TemporaryDirectory(dir=folder, prefix=".captum-fam-") as scratch:
        yield Path(scratch)
        files = sorted(Path(scratch).iterdir(), key=lambda path: (path.name == MANIFEST, path.name))
        if files and files[-1].name == MANIFEST:
            (folder / MANIFEST).unlink(missing_ok=True)
        for path in files:
            os.replace(path, folder / path.name)
