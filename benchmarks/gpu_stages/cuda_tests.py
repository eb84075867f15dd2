"""Stage ``tests``: the tests of the suite that need a GPU."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

from benchmarks.gpu_stages.report import Case, Report

_ROOT = Path(__file__).parents[2]
_MARK = "mark.cuda"


def marked_files() -> list[Path]:
    """The test modules with tests marked ``cuda``; only these are collected, because the whole suite takes a minute."""
    files = sorted((_ROOT / "tests").rglob("test_*.py"))
    return [file for file in files if f"@pytest.{_MARK}" in file.read_text(encoding="utf-8")]


def run(case: Case, report: Report) -> None:
    """Run the marked tests, and count what passed; without a GPU they are all skipped.

    Args:
        case: what the stage is told.
        report: the report of the stage.
    """
    files = marked_files()
    report.fact(
        files=len(files), marked=sum(file.read_text(encoding="utf-8").count(f"@pytest.{_MARK}") for file in files)
    )
    if case.is_small:
        files = files[:1]
    junit = Path(case.folder).absolute() / "junit.xml"
    command = [sys.executable, "-m", "pytest", "-m", "cuda", "-q", "-p", "no:cacheprovider", f"--junitxml={junit}"]
    command += [str(file.relative_to(_ROOT)) for file in files]
    try:
        ran = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, timeout=max(5.0, report.left))
    except subprocess.TimeoutExpired as error:
        output = error.stdout.decode(errors="replace") if isinstance(error.stdout, bytes) else error.stdout or ""
        report.fact(output=output[-3000:])
        report.finish(state="stopped", stopped_before="the end of the tests")
        return
    report.fact(code=ran.returncode, output=(ran.stdout + ran.stderr)[-3000:])
    if not junit.exists():
        raise RuntimeError(f"pytest ended with code {ran.returncode} and wrote no results")
    for test in ElementTree.parse(junit).iter("testcase"):
        states = [child.tag for child in test if child.tag in ("failure", "error", "skipped")]
        text = next((child.get("message", "")[:300] for child in test), "")
        name = f"{test.get('classname', '')}::{test.get('name', '')}"
        report.content["rows"].append({"test": name, "state": states[0] if states else "passed", "message": text})
    counts = [row["state"] for row in report.content["rows"]]
    report.fact(**{state: counts.count(state) for state in ("passed", "failure", "error", "skipped")})
