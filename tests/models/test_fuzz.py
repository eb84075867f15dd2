"""A part of the mutated and hostile files of ``python -m tests.models.fuzz_files``."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs the limits and the /proc of Linux")
def test_no_file_does_anything_but_be_read_or_refused():
    # The hostile files come first; the others are mutations.
    command = [sys.executable, "-m", "tests.models.fuzz_files", "--inputs", "400", "--seed", "1"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stdout + done.stderr
    assert "400 inputs, 0 wrong" in done.stdout
