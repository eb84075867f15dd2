"""Checks what a release would publish: builds it, reads it, installs it into an empty environment, and runs it there.

``python .ci/check_release.py --out dist`` does all of this, and leaves the two files of the release in ``dist``. It
needs the packages build, twine and check-wheel-contents, and downloads what the package depends on.

``python .ci/check_release.py --offline`` builds a wheel with the setuptools at hand, reads it, and runs its command
with the packages of this Python. It downloads nothing and takes seconds; the suite runs it.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable, Sequence
from configparser import ConfigParser
from email.message import Message
from email.parser import Parser
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "captum_fam"
NAME = "captum-fam"

MOST_BYTES = 2_000_000
"""A wheel above this size has something in it that does not belong there."""

CODE = re.compile(r"(^```.*?^```$)", re.DOTALL | re.MULTILINE)
RELATIVE = r"(?!https?:|#)"
"""What follows the parenthesis of a link that leads to a file."""

IN_THE_SDIST = ("CHANGELOG.md", "CITATION.cff", "LICENSE", "README.md", "SECURITY.md", "pyproject.toml", "setup.cfg")
"""Files beside the package that the source distribution has."""


def copy_sources(to: Path) -> Path:
    """Copy the files of the repository that git would commit, so that no leftover of a build gets in.

    Args:
        to: folder that does not exist yet.

    Returns:
        The folder.
    """
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        if not (ROOT / name).is_file():  # deleted, and not committed yet
            continue
        (to / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, to / name)
    return to


def make_links_absolute(sources: Path) -> None:
    """Make the links of the README lead to the repository in the web, because the registry shows the README alone.

    Args:
        sources: folder with a copy of the sources, whose README is written anew.
    """
    project = (sources / "pyproject.toml").read_text("utf-8")
    (repository,) = re.findall(r'^Repository = "(.+)"$', project, re.MULTILINE)
    tag = f"v{version_of(sources)}"
    page = sources / "README.md"
    parts = CODE.split(page.read_text("utf-8"))
    for number in range(0, len(parts), 2):  # between the blocks of code
        text = re.sub(rf"(!\[[^\]]*\]\(){RELATIVE}", rf"\g<1>{repository}/raw/{tag}/", parts[number])
        parts[number] = re.sub(rf"(\]\(){RELATIVE}", rf"\g<1>{repository}/blob/{tag}/", text)
    page.write_text("".join(parts), "utf-8")


def build_wheel(sources: Path, out: Path) -> Path:
    """Build a wheel with the setuptools of this Python.

    Args:
        sources: folder with the sources.
        out: folder of the wheel.

    Returns:
        The path of the wheel.
    """
    out.mkdir(parents=True, exist_ok=True)
    code = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    run([sys.executable, "-c", code, out.resolve()], cwd=sources, quiet=True)
    (wheel,) = out.glob("*.whl")
    return wheel


def build_release(sources: Path, out: Path) -> tuple[Path, Path]:
    """Build the source distribution, and the wheel from it, each in an environment of its own.

    Args:
        sources: folder with the sources.
        out: folder of both files.

    Returns:
        The paths of the source distribution and of the wheel.
    """
    out.mkdir(parents=True, exist_ok=True)
    if any(out.iterdir()):
        raise SystemExit(f"{out} is not empty: give another folder, or delete what is in it")
    run([sys.executable, "-m", "build", "--outdir", out.resolve(), sources], quiet=True)
    (sdist,) = out.glob("*.tar.gz")
    (wheel,) = out.glob("*.whl")
    return sdist, wheel


def version_of(sources: Path) -> str:
    """The version that the package names.

    Args:
        sources: folder with the sources.
    """
    text = (sources / PACKAGE / "__init__.py").read_text("utf-8")
    (version,) = re.findall(r'^__version__ = "(.+)"$', text, re.MULTILINE)
    return str(version)


def version_faults(sources: Path, tag: str | None = None) -> list[str]:
    """Where the version of the package and what is written elsewhere do not agree.

    Args:
        sources: folder with the sources.
        tag: the tag of the release, which is the version after a ``v``. Default: None, which checks no tag, and allows
            that the version has no date in the changelog yet.

    Returns:
        One sentence for each fault.
    """
    version = version_of(sources)
    faults = []
    cited = re.findall(r"^version: (.+)$", (sources / "CITATION.cff").read_text("utf-8"), re.MULTILINE)
    if cited != [version]:
        faults.append(f"CITATION.cff has the version {cited}, the package {version}")
    recipe = re.findall(r'set version = "(.+)"', (sources / ".conda" / "meta.yaml").read_text("utf-8"))
    if recipe != [version]:
        faults.append(f".conda/meta.yaml has the version {recipe}, the package {version}")
    changes = re.findall(r"^## \[?([^\]\s]+)\]?(.*)$", (sources / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    dates = dict(changes)
    if version not in dates:
        faults.append(f"CHANGELOG.md has no section of the version {version}")
    if tag is not None:
        if tag != f"v{version}":
            faults.append(f"the tag is {tag}, expected v{version}")
        if not re.fullmatch(r" - \d{4}-\d\d-\d\d", dates.get(version, "")):
            faults.append(f"CHANGELOG.md has no date at the version {version}; expected '## [{version}] - YYYY-MM-DD'")
    return faults


def wheel_faults(wheel: Path, sources: Path) -> list[str]:
    """What is wrong with a wheel: files that are missing or do not belong there, and metadata.

    Args:
        wheel: path of the wheel.
        sources: folder with the sources that it was built from.

    Returns:
        One sentence for each fault.
    """
    version = version_of(sources)
    info = f"{PACKAGE}-{version}.dist-info"
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
        texts = {name: archive.read(name).decode() for name in names if name.startswith(f"{info}/")}
    expected = package_files(sources)
    built = {name for name in names if not name.startswith(f"{info}/")}
    faults = [f"{name} is not in the wheel" for name in sorted(expected - built)]
    faults += [f"{name} does not belong into the wheel" for name in sorted(built - expected)]
    if wheel.name != f"{PACKAGE}-{version}-py3-none-any.whl":
        faults.append(f"the wheel is named {wheel.name}")
    if wheel.stat().st_size > MOST_BYTES:
        faults.append(f"the wheel has {wheel.stat().st_size:,} bytes, at most {MOST_BYTES:,} expected")
    if f"{info}/licenses/LICENSE" not in texts:
        faults.append("the wheel has no license")
    if f"{info}/METADATA" not in texts or f"{info}/entry_points.txt" not in texts:
        return [*faults, "the wheel has no metadata"]
    faults += metadata_faults(Parser().parsestr(texts[f"{info}/METADATA"]), sources)
    faults += entry_point_faults(texts[f"{info}/entry_points.txt"], built)
    return faults


def package_files(sources: Path) -> set[str]:
    """The files that a wheel has beside its metadata: all of the package.

    Args:
        sources: folder with the sources.
    """
    files = (path for path in (sources / PACKAGE).rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(sources).as_posix() for path in files}


def metadata_faults(metadata: Message, sources: Path) -> list[str]:
    """What is wrong with the metadata of a package.

    Args:
        metadata: fields of the file ``METADATA`` or ``PKG-INFO``.
        sources: folder with the sources.

    Returns:
        One sentence for each fault.
    """
    expected = {
        "Name": NAME,
        "Version": version_of(sources),
        "License-Expression": "BSD-3-Clause",
        "Requires-Python": ">=3.10",  # no upper bound, which would shut out each new Python
        "Description-Content-Type": "text/markdown",
    }
    faults = [
        f"{name} is {metadata[name]!r}, expected {value!r}"
        for name, value in expected.items()
        if metadata[name] != value
    ]
    body = str(metadata.get_payload()).strip()
    if body != (sources / "README.md").read_text("utf-8").strip():
        faults.append("the description is not the README")
    relative = re.findall(rf"\]\({RELATIVE}([^)]+)", "".join(CODE.split(body)[::2]))
    faults += [f"the description links to {link}, which a registry does not have" for link in relative]
    links = {line.partition(",")[0] for line in metadata.get_all("Project-URL", [])}
    missing = {"Changelog", "Documentation", "Homepage", "Issues", "Paper", "Repository"} - links
    faults += [f"there is no link to {name}" for name in sorted(missing)]
    requirements = metadata.get_all("Requires-Dist", [])
    names = {re.split(r"[^\w.-]", line)[0] for line in requirements if "extra ==" not in line}
    if not {"captum", "torch"} <= names:
        faults.append(f"the package depends on {sorted(names)}")
    if "dev" not in metadata.get_all("Provides-Extra", []):
        faults.append("the extras are missing")
    return faults


def entry_point_faults(text: str, files: Iterable[str]) -> list[str]:
    """Entry points that lead to no module of the package.

    Args:
        text: content of ``entry_points.txt``.
        files: files of the package.

    Returns:
        One sentence for each fault.
    """
    parser = ConfigParser(delimiters="=")
    parser.read_string(text)
    known = set(files)
    faults = [
        f"no entry points of {group}" for group in ("console_scripts", "captum_fam.models") if group not in parser
    ]
    for group in parser.sections():
        for name, value in parser[group].items():
            path = value.partition(":")[0].replace(".", "/")
            if not {f"{path}.py", f"{path}/__init__.py"} & known:
                faults.append(f"the entry point {name} leads to {value}, which is not there")
    return faults


def sdist_faults(sdist: Path, sources: Path) -> list[str]:
    """What is wrong with a source distribution.

    Args:
        sdist: path of the archive.
        sources: folder with the sources that it was built from.

    Returns:
        One sentence for each fault.
    """
    top = f"{PACKAGE}-{version_of(sources)}"
    with tarfile.open(sdist) as archive:
        paths = [PurePosixPath(member.name) for member in archive.getmembers() if member.isfile()]
        info = archive.extractfile(f"{top}/PKG-INFO")
        assert info is not None
        metadata = Parser().parsestr(info.read().decode())
    names = {path.relative_to(top).as_posix() for path in paths if path.parts[0] == top}
    faults = [f"{path} lies outside {top}" for path in paths if path.parts[0] != top]
    faults += [f"{name} is not in the sdist" for name in sorted({*IN_THE_SDIST, *package_files(sources)} - names)]
    return faults + metadata_faults(metadata, sources)


def try_installed(python: Path, folder: Path, environment: dict[str, str], *, demo: bool) -> None:
    """Run an installed package from an empty folder.

    Args:
        python: interpreter that finds the installed package.
        folder: folder that the package is installed into.
        environment: variables of the environment.
        demo: whether to run the demo as well, which takes a minute.
    """
    command = "import sys; from captum_fam.cli.main import main; sys.exit(main(sys.argv[1:]))"
    where = f"import {PACKAGE}; print({PACKAGE}.__file__)"
    with tempfile.TemporaryDirectory() as empty:
        found = run([python, "-c", where], cwd=Path(empty), environment=environment, quiet=True)
        if folder.resolve() not in Path(found.strip()).resolve().parents:
            raise SystemExit(f"{found.strip()} was imported, not the package that is installed into {folder}")
        run([python, "-c", command, "--version"], cwd=Path(empty), environment=environment)
        run([python, "-c", command, "explain", "--help"], cwd=Path(empty), environment=environment, quiet=True)
        if demo:
            run([python, "-c", command, "demo", "--out", "out"], cwd=Path(empty), environment=environment)
            written = {path.name for path in Path(empty, "out").iterdir()}
            if not {"demo.png", "report.html"} <= written:
                raise SystemExit(f"the demo has written {sorted(written)}")


def try_wheel_offline(wheel: Path, folder: Path) -> None:
    """Unpack a wheel as pip installs it, and run it with the packages of this Python.

    Args:
        wheel: path of the wheel.
        folder: folder that it is installed into.
    """
    run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", folder, wheel])
    try_installed(Path(sys.executable), folder, {**os.environ, "PYTHONPATH": str(folder.resolve())}, demo=False)


def try_wheel(wheel: Path, folder: Path, interpreter: str, extras: str) -> None:
    """Install a wheel with all that it depends on into an empty environment, and run the demo there.

    Args:
        wheel: path of the wheel.
        folder: folder of the environment.
        interpreter: the Python of the environment.
        extras: extras to install, with commas; empty for none.
    """
    run([interpreter, "-m", "venv", folder])
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    what = f"{wheel.resolve()}[{extras}]" if extras else str(wheel.resolve())
    run([python, "-m", "pip", "install", "--quiet", what])
    run([python, "-m", "pip", "check"])
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = python.with_name("captum-fam.exe" if os.name == "nt" else "captum-fam")
    run([command, "--version"], environment=environment)
    try_installed(python, folder, environment, demo=True)


def run(
    command: Sequence[str | Path],
    cwd: Path | None = None,
    environment: dict[str, str] | None = None,
    quiet: bool = False,
) -> str:
    """Run a command, show its output unless it is quiet, and stop with it if it fails.

    Args:
        command: the command and its arguments.
        cwd: the folder that it runs in. Default: None, this one.
        environment: variables of its environment. Default: None, those of this process.
        quiet: whether the output is shown only if the command fails. Default: False.

    Returns:
        What the command printed.
    """
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.stdout.strip() and (done.returncode or not quiet):
        print(done.stdout.rstrip(), flush=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)} ended with {done.returncode}")
    return done.stdout


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the checks.

    Args:
        arguments: words of the command line. Default: None, those of this process.

    Returns:
        0 if nothing is wrong, else 1.
    """
    parser = argparse.ArgumentParser(description="Check what a release would publish.")
    parser.add_argument("--offline", action="store_true", help="build and read a wheel with the packages at hand only")
    parser.add_argument(
        "--out", type=Path, default=Path("dist"), help="folder of the built files; default: %(default)s"
    )
    parser.add_argument("--tag", help="tag of the release, which the version has to agree with")
    parser.add_argument("--python", default=sys.executable, help="Python of the empty environment; default: this one")
    parser.add_argument(
        "--environment", type=Path, help="folder of the empty environment; default: one that is deleted"
    )
    parser.add_argument("--extras", default="", help="extras of the empty environment, with commas; default: none")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sources = copy_sources(folder / "sources")
        make_links_absolute(sources)
        faults = version_faults(sources, options.tag)
        if options.offline:
            wheel = build_wheel(sources, folder / "dist")
            faults += wheel_faults(wheel, sources)
        else:
            sdist, wheel = build_release(sources, options.out)
            run([sys.executable, "-m", "twine", "check", "--strict", sdist, wheel])
            run([sys.executable, "-m", "check_wheel_contents", wheel])
            faults += wheel_faults(wheel, sources) + sdist_faults(sdist, sources)
        for fault in faults:
            print(fault)
        if faults:
            return 1
        if options.offline:
            try_wheel_offline(wheel, folder / "installed")
        else:
            try_wheel(wheel, options.environment or folder / "environment", options.python, options.extras)
        print(f"{wheel.name} is fit for a release: {wheel.stat().st_size:,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
