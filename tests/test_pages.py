"""The code of the pages runs: all Python blocks of one page in order, in an empty folder, without a network.

A page is the README, or a file of ``docs/`` or ``docs/howto/`` whose code no other test runs. Its blocks, fenced as
``python``, share one namespace, as the cells of a notebook do. ``<!-- needs: timm, faiss -->`` in its first line names
the modules that its code imports beyond the core; where one is missing, the page is skipped. A block fenced as
``output`` holds what the block of Python before it prints; numbers may differ in their last digits. Code that cannot
run here is fenced as ``{code-block} python``, and its page says so.
"""

from __future__ import annotations

import contextlib
import io
import random
import re
import socket
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from tests.needed_modules import missing, needs

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
# Run by tests of their own, with what the reader of the page has; the last one needs a file that is downloaded by hand.
TESTED_ELSEWHERE = {"methods", "looking", "your-model", "search-engines", "training", "faces"}
PAGES = [
    ROOT / "README.md",
    *(page for page in sorted(DOCS.glob("*.md")) if page.stem not in TESTED_ELSEWHERE),
    *sorted((DOCS / "howto").glob("*.md")),
]
REGISTRIES = {
    "captum_fam.attr.registry": "METHODS",
    "captum_fam.attr.way_back": "RULES",
    "captum_fam.models.registry": "_MODELS",
    "captum_fam.similarity.registry": "_MAKERS",
    "captum_fam.experiments.measures.base": "MEASURES",
    "captum_fam.experiments.protocols.registry": "PROTOCOLS",
}
NUMBER = re.compile(r"(-?\d+(?:\.\d+)?(?:e[+-]?\d+)?)( ?%)?")


class Block(NamedTuple):
    """Code, the line of its page that it starts in, and what the page says that it prints (None: nothing is said)."""

    code: str
    line: int
    output: str | None


def blocks(text: str) -> list[Block]:
    """The Python blocks of a page, in their order."""
    found: list[Block] = []
    pattern = re.compile(r"^( *)(`{3,}|:{3,})(\S*)[^\n`]*\n(.*?)^\1\2 *$", re.DOTALL | re.MULTILINE)
    for fence in pattern.finditer(text):
        kind, body = fence[3], textwrap.dedent(fence[4])
        assert kind.lower() not in ("py", "python3", "pycon", "ipython"), f"fence it as python: {body}"
        if kind == "python":
            found.append(Block(body, text.count("\n", 0, fence.start(4)), None))
        elif kind == "output":
            assert found, "an output without code before it"
            assert found[-1].output is None, "two outputs of one block"
            found[-1] = found[-1]._replace(output=body)
        elif kind.startswith("{"):  # a directive: its body may hold blocks
            found += blocks(body)
    return found


def agree(printed: str, expected: str) -> bool:
    """Whether two outputs have the same words, and numbers within 2 % or 0.02 of each other (a percentage: 1)."""
    words, expected_words = (NUMBER.sub("#", text).split() for text in (printed, expected))
    numbers = zip(NUMBER.findall(printed), NUMBER.findall(expected), strict=False)
    return words == expected_words and all(
        float(one) == pytest.approx(float(other), rel=0.02, abs=1 if percent else 0.02)
        for (one, percent), (other, _) in numbers
    )


def run_page(page: Path, name: str = "page") -> dict[str, Any]:
    """Run the code of a page in the current folder; its names."""
    module = ModuleType(name)
    sys.modules[name] = module
    for block in blocks(page.read_text(encoding="utf-8")):
        printed = io.StringIO()
        # So many lines before it that a traceback names the line of the page.
        code = compile("\n" * block.line + block.code, str(page), "exec")
        with contextlib.redirect_stdout(printed):
            exec(code, vars(module))
        if block.output is not None and not agree(printed.getvalue(), block.output):
            pytest.fail(f"{page.name}, line {block.line + 1}: printed\n{printed.getvalue()}\nnot\n{block.output}")
    return vars(module)


@pytest.fixture
def left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An empty folder and no network; afterwards random states, registries, modules and figures are what they were."""
    monkeypatch.chdir(tmp_path)
    connect = socket.socket.connect

    def refuse(one: socket.socket, address: Any) -> None:
        if isinstance(address, tuple) and address[0] not in ("127.0.0.1", "::1", "localhost"):
            raise OSError(f"the code of a page asked for {address[0]}, but pages run without a network")
        connect(one, address)

    def resolve(host: Any, *rest: Any, **options: Any) -> Any:
        if host not in (None, "127.0.0.1", "::1", "localhost"):
            raise socket.gaierror(f"the code of a page asked for {host}, but pages run without a network")
        return found_addresses(host, *rest, **options)

    found_addresses = socket.getaddrinfo
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    states = random.getstate(), np.random.get_state()  # noqa: NPY002  old code draws from it
    registries = [vars(sys.modules[module])[name] for module, name in REGISTRIES.items() if module in sys.modules]
    entries = [dict(registry) for registry in registries]
    modules = set(sys.modules)
    with torch.random.fork_rng(devices=[]):
        yield
    for registry, before in zip(registries, entries, strict=True):
        registry.clear()
        registry.update(before)
    for name in set(sys.modules) - modules:
        file = getattr(sys.modules[name], "__file__", None)
        if name == "page" or (file and Path(file).is_relative_to(tmp_path)):
            del sys.modules[name]
    plt.close("all")
    random.setstate(states[0])
    np.random.set_state(states[1])  # noqa: NPY002


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.usefixtures("left_alone")
def test_the_code_of_a_page_runs(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    if absent := missing(needs(text)):
        pytest.skip(f"the page needs {', '.join(absent)}")
    run_page(page)


def test_pages_that_are_tested_elsewhere_are_there() -> None:
    assert {page.stem for page in DOCS.glob("*.md")} >= TESTED_ELSEWHERE


PAGE = """<!-- needs: torch, no_such.module -->
# A page

```python
number = 1 / 3
print("third", number)
```

```output
third 0.334
```

:::{tip}
```python
number += 1
```
:::

```{code-block} python
never()
```
"""


@pytest.mark.usefixtures("left_alone")
def test_blocks_run_in_order_and_outputs_are_compared(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    assert needs(PAGE) == ["torch", "no_such.module"]
    assert missing(needs(PAGE)) == ["no_such.module"]
    assert next(block.line for block in blocks(PAGE)) == 4
    assert run_page(page)["number"] == pytest.approx(4 / 3)
    page.write_text(PAGE.replace("0.334", "0.5"))
    with pytest.raises(pytest.fail.Exception, match=r"line 5: printed\nthird 0\.333"):
        run_page(page)


@pytest.mark.usefixtures("left_alone")
def test_a_page_has_no_network() -> None:
    with pytest.raises(OSError, match="without a network"):
        socket.create_connection(("example.org", 80), timeout=1)
    with pytest.raises(OSError, match="without a network"), socket.socket() as one:
        one.connect(("192.0.2.1", 80))
