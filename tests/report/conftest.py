"""The browser of the machine, and a report that is open in it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from captum_fam.report import write_page
from tests.report.made import page, row

_ARGUMENTS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Chromium, driven by playwright."""
    api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("needs Chromium on this machine: apt-get install chromium")
    with api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=program, args=_ARGUMENTS.split())
        yield chromium
        chromium.close()


@pytest.fixture
def visit(browser: Any) -> Iterator[Callable[..., Any]]:
    """``visit(path, width=1280, **context)``: the file in a new window, whose rows in view are drawn.

    The window has the lists ``requests`` and ``errors``: addresses besides those inside the file, and what the page
    wrote to the console.
    """
    contexts = []

    def visit(path: Path, width: int = 1280, **options: Any) -> Any:
        context = browser.new_context(viewport={"width": width, "height": 900}, **options)
        contexts.append(context)
        window = context.new_page()
        window.requests, window.errors = [], []
        window.on("request", lambda one: None if one.url.startswith("data:") else window.requests.append(one.url))
        window.on("console", lambda one: window.errors.append(one.text))
        window.on("pageerror", lambda one: window.errors.append(str(one)))
        window.goto(path.as_uri())
        # Playwright's own waiting compiles code inside the page, which the policy of the page forbids.
        while window.evaluate("!!document.querySelector('.row .data')"):
            window.wait_for_timeout(20)
        return window

    yield visit
    for context in contexts:
        context.close()


@pytest.fixture(scope="session")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two rows: one with two supports, and one with one support and a wrong prediction."""
    path = tmp_path_factory.mktemp("report") / "birds.html"
    write_page(page(), [row(1), row(2, n_pairs=1, truth="wren")], path)
    return path
