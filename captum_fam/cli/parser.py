"""The parser of the command line. An error is one line, which names the closest known word."""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Iterable
from typing import Any, NoReturn

from captum_fam._text import printable

# From this ratio of difflib on, which is 1 for equal words, a known word counts as close.
_CLOSE = 0.6


class CommandParser(argparse.ArgumentParser):
    """A parser that prints one line for a wrong word, instead of the whole usage. Options cannot be abbreviated.

    Example:
        >>> parser = CommandParser(prog="captum-fam walk")
        >>> _ = parser.add_argument("--steps")
        >>> parser.parse_args(["--step", "3"])
        Traceback (most recent call last):
        ...
        SystemExit: 2
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **options})
        # argparse itself takes -1e-3 and -inf for options, and then says that a value is missing.
        self._negative_number_matcher = re.compile(r"-(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$|-(inf|nan)", re.IGNORECASE)

    def error(self, message: str) -> NoReturn:
        """Print a line, and exit with code 2.

        Args:
            message: what is wrong.
        """
        unknown = re.match(r"unrecognized arguments: (--[^\s=]+)", message)
        if unknown:
            owners = [name for name, parser in self._below() if unknown[1] in parser._option_string_actions]
            if owners:
                message += f"; {unknown[1]} is an option of {', '.join(owners)}"
            else:
                message += did_you_mean(unknown[1], self._options())
        choice = re.search(r"invalid choice: '(.*)' \(choose from (.*)\)", message)
        if choice:
            message += did_you_mean(choice[1], re.split(r"'?, '?", choice[2].strip("'")))
        self.exit(2, f"{self.prog}: error: {printable(message, 2000)} ({self.prog} --help lists the options)\n")

    def _below(self) -> list[tuple[str, argparse.ArgumentParser]]:
        """The commands below this one, by name."""
        below = [action.choices for action in self._actions if isinstance(action, argparse._SubParsersAction)]
        return [named for choices in below for named in choices.items()]

    def _options(self) -> list[str]:
        """The options of this parser and of the commands below it."""
        parsers = [self, *(parser for _, parser in self._below())]
        return [option for parser in parsers for option in parser._option_string_actions]


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The known word that is closest to a wrong one, as the end of a message.

    Args:
        word: the wrong word.
        known: the known words.

    Returns:
        ``"; did you mean WORD?"``, or nothing if no known word is close.

    Example:
        >>> did_you_mean("gradcam", ["fam", "grad-cam"])
        '; did you mean grad-cam?'
    """
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=_CLOSE)
    return f"; did you mean {close[0]}?" if close else ""
