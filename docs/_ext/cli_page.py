"""Writes ``docs/cli.md``, the reference of the command line, from the parsers of ``captum-fam`` themselves."""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx
from written import write_page

from captum_fam.cli.main import COMMANDS, EXIT_CODES, make_parser

HEAD = """\
# Command line

`captum-fam COMMAND --help` prints the same texts, which are those of the parsers. Options cannot be abbreviated.

"""

GLOBAL_OPTIONS = """\
## captum-fam

```text
usage: captum-fam [-h] [--version] [--traceback] [--plugin MODULE_OR_FILE.py] COMMAND ...
```

Options before the command: `--version`; `--traceback` shows where an error came from; `--plugin` imports code of your
own that registers methods, similarities, models or protocols, and may be repeated.

"""


def cli_reference() -> str:
    """The page.

    Returns:
        Markdown with one section a command.
    """
    os.environ["COLUMNS"] = "90"  # the width that argparse wraps at
    parts = [HEAD, "| command | what it does |\n|---|---|\n"]
    parts += [f"| [`captum-fam {name}`](#captum-fam-{name}) | {command.help} |\n" for name, command in COMMANDS.items()]
    parts += ["\n", GLOBAL_OPTIONS]
    codes = EXIT_CODES.partition("\n")[2]
    rows = re.findall(r"^  (\d+) +(.+)$", codes, re.MULTILINE)
    parts += ["| exit code | meaning |\n|---|---|\n", *(f"| {code} | {_text(text)} |\n" for code, text in rows)]
    parts += ["\n", " ".join(line for line in codes.splitlines() if not line.startswith(" ")), "\n\n"]
    for name in COMMANDS:
        parts += _sections(make_parser(name), 2)
    return "".join(parts).rstrip() + "\n"


def _sections(parser: argparse.ArgumentParser, level: int) -> list[str]:
    """The section of a parser, and those of the parsers below it."""
    marks = "#" * level
    parts = [f"{marks} {parser.prog}\n\n"]
    if parser.description:
        parts += [_text(parser.description), "\n\n"]
    below = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    parts += [f"```text\n{parser.format_usage()}```\n\n", f"```{{program}} {parser.prog}\n```\n\n"]
    for group in parser._action_groups:
        actions = [action for action in group._group_actions if _is_shown(action)]
        if not actions:
            continue
        if group.title not in ("options", "positional arguments"):
            parts += [f"{marks}# {group.title}: {parser.prog.removeprefix('captum-fam ')}\n\n"]
        if group.description:
            parts += [_text(group.description), "\n\n"]
        for action in actions:
            parts += _option(parser, action)
    if parser.epilog:
        parts += [_epilog(parser.epilog)]
    for action in below:
        helps = {choice.dest: choice.help or "" for choice in action._choices_actions}
        parts += ["| | |\n|---|---|\n"]
        for name, one in action.choices.items():
            parts += [f"| [`{one.prog}`](#{one.prog.replace(' ', '-')}) | {_text(helps.get(name, ''))} |\n"]
        parts += ["\n"]
        for one in action.choices.values():
            parts += _sections(one, level + 1)
    return parts


def _epilog(epilog: str) -> str:
    """The text below the options: commands as a block, the rest as text."""
    examples, _, rest = epilog.partition(". ") if epilog.startswith("example") else ("", "", epilog)
    commands = [line.strip() for line in examples.partition(":")[2].split(" | captum-fam ") if line.strip()]
    commands = [line if line.startswith("captum-fam ") else f"captum-fam {line}" for line in commands]
    block = "```text\n" + "\n".join(commands) + "\n```\n\n" if commands else ""
    return block + (f"{_text(rest)}\n\n" if rest else "")


def _is_shown(action: argparse.Action) -> bool:
    hidden = isinstance(action, argparse._HelpAction | argparse._SubParsersAction)
    return action.help is not argparse.SUPPRESS and not hidden


def _option(parser: argparse.ArgumentParser, action: argparse.Action) -> list[str]:
    formatter = parser._get_formatter()
    metavar = formatter._get_default_metavar_for_optional(action) if action.option_strings else ""
    value = formatter._format_args(action, metavar) if action.nargs != 0 and action.option_strings else ""
    if action.option_strings:
        signature = ", ".join(f"{flag} {value}".strip() for flag in action.option_strings)
    else:
        signature = formatter._format_args(action, formatter._get_default_metavar_for_positional(action))
    help_text = formatter._expand_help(action) if action.help else ""
    note = " Required." if action.required and action.option_strings else ""
    return [f"````{{option}} {signature}\n{_text(help_text)}{note}\n````\n\n"]


def _text(text: str) -> str:
    """A text of the help as markdown: words with marks in them become code."""
    text = " ".join(text.replace("|", "&#124;").split())
    text = re.sub(r"(?<![\w`-])(--?[a-z][\w-]*)", r"`\1`", text)
    return re.sub(r"(?<=\s)([*_<][^\s]*)", r"`\1`", text)


def write_cli(app: Sphinx) -> None:
    """Write the page.

    Args:
        app: the application of Sphinx.
    """
    write_page(Path(app.srcdir) / "cli.md", cli_reference())


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the writing.

    Args:
        app: the application of Sphinx.

    Returns:
        What Sphinx asks of an extension.
    """
    app.connect("builder-inited", write_cli)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
