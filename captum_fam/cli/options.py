"""Options of the command line from the fields of dataclasses: name, type, default and help are said once, there."""

from __future__ import annotations

import argparse
import dataclasses
import types
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")


def option(
    help: str,
    default: Any = dataclasses.MISSING,
    *,
    metavar: str | None = None,
    choices: Collection[str] | None = None,
    parse: Callable[[str], Any] | None = None,
) -> Any:
    """A field of a dataclass that :func:`add_fields` makes an option of the command line.

    Args:
        help: what the option does, in lower case. A default that is not None is added to it.
        default: of the field; a field without one is an option that must be given.
        metavar: what stands for the value in the help. Default: by the field's type.
        choices: the values that are allowed. Default: those of a ``Literal``, else any.
        parse: from the word to the value. Default: by the field's type.

    Example:
        >>> @dataclasses.dataclass
        ... class Episodes:
        ...     way: int = option("classes per episode", 5, parse=positive)
        >>> parser = argparse.ArgumentParser()
        >>> add_fields(parser, Episodes)
        >>> read_fields(Episodes, parser.parse_args(["--way", "3"]))
        Episodes(way=3)
    """
    metadata = {"help": help, "metavar": metavar, "choices": choices, "parse": parse}
    return dataclasses.field(default=default, metadata=metadata)


def add_fields(
    parser: argparse.ArgumentParser,
    owner: type,
    *,
    skip: Collection[str] = (),
    defaults: Mapping[str, Any] | None = None,
) -> None:
    """Add an option for every field of a dataclass whose metadata has a ``"help"``.

    ``Literal`` fields take one of its values; ``bool`` fields are switches, with a ``--no-`` form where
    they are on by default; ``tuple`` fields take
    several values with commas between; ``X | None`` fields take an X.

    Args:
        parser: that gets the options.
        owner: the dataclass.
        skip: names of fields that are no options here.
        defaults: values in place of the fields' own defaults, by name.
    """
    hints = get_type_hints(owner)
    for field in option_fields(owner):
        if field.name not in skip:
            default = (defaults or {}).get(field.name, _default(field))
            flag = f"--{field.name.replace('_', '-')}"
            parser.add_argument(flag, **_arguments(field, hints[field.name], default))


def option_fields(owner: type) -> list[dataclasses.Field[Any]]:
    """The fields of a dataclass that are options of the command line."""
    return [field for field in dataclasses.fields(owner) if "help" in field.metadata]


def read_fields(owner: Callable[..., T], options: argparse.Namespace, **others: Any) -> T:
    """Make a dataclass of the parsed options.

    Args:
        owner: the dataclass.
        options: the parsed words; fields that were skipped keep their own default.
        **others: further fields, which are no options or replace one.
    """
    fields = option_fields(owner)  # type: ignore[arg-type]
    given = {field.name: getattr(options, field.name) for field in fields if hasattr(options, field.name)}
    return owner(**{**given, **others})


def names_of(known: Collection[str], what: str) -> Callable[[str], tuple[str, ...]]:
    """The type of an option that takes some of the known names, with commas between.

    Args:
        known: the names.
        what: what they name, for the message.
    """

    def parse(text: str) -> tuple[str, ...]:
        names = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
        for name in names:
            if name not in known:
                raise argparse.ArgumentTypeError(f"unknown {what} {name!r}, choose from {', '.join(known)}")
        return names

    return parse


def positive(text: str) -> int:
    """A whole number of at least 1, as the type of an option."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text}")
    return int(text)


def default_out(parser: argparse.ArgumentParser, suffix: str = "") -> Path:
    """Where a command writes by default: a folder or file named as the command, ``captum-fam-explain``."""
    return Path(parser.prog.replace(" ", "-") + suffix)


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _arguments(field: dataclasses.Field[Any], hint: Any, default: Any) -> dict[str, Any]:
    """What ``add_argument`` is told of a field."""
    hint = _without_none(hint)
    text = field.metadata["help"]
    is_switch = hint is bool and default is False
    if default not in (dataclasses.MISSING, None, "", ()) and not is_switch:
        text = f"{text}; default: {_in_words(default)}"
    arguments: dict[str, Any] = {"help": text.replace("%", "%%")}
    arguments |= {"required": True} if default is dataclasses.MISSING else {"default": default}
    if hint is bool:
        return {**arguments, "action": "store_true" if is_switch else argparse.BooleanOptionalAction}
    return {**arguments, **_value(field.metadata, hint)}


def _value(metadata: Mapping[str, Any], hint: Any) -> dict[str, Any]:
    """How a value is read: by the metadata, else by the type."""
    metavar, choices, parse = (metadata.get(name) for name in ("metavar", "choices", "parse"))
    if choices is None and get_origin(hint) is Literal:
        choices = get_args(hint)
    if choices is not None:
        return {"choices": choices, "type": type(next(iter(choices))), "metavar": metavar}
    if parse is not None:
        return {"type": parse, "metavar": metavar or "N"}
    if get_origin(hint) is tuple:
        item = get_args(hint)[0]
        return {"type": _several(item), "metavar": metavar or "VALUE,..."}
    known = {int: "N", float: "X", Path: "PATH"}
    return {"type": hint if hint in known else str, "metavar": metavar or known.get(hint, "NAME")}


def _without_none(hint: Any) -> Any:
    """X of ``X | None``."""
    if get_origin(hint) in (Union, types.UnionType):
        return next(part for part in get_args(hint) if part is not type(None))
    return hint


def _several(item: Callable[[str], Any]) -> Callable[[str], tuple[Any, ...]]:
    def values(text: str) -> tuple[Any, ...]:
        return tuple(item(part.strip()) for part in text.split(",") if part.strip())

    return values


def _in_words(default: Any) -> str:
    if isinstance(default, bool):
        return "yes" if default else "no"
    return ",".join(map(str, default)) if isinstance(default, tuple) else str(default)
