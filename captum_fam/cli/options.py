"""Options of the command line from fields of dataclasses. A field gives the name, type, default and help."""

from __future__ import annotations

import argparse
import dataclasses
import math
import types
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from captum_fam.cli.parser import did_you_mean
from captum_fam.cli.ranges import ANY, Range

T = TypeVar("T")


def option(
    help: str,
    default: Any = dataclasses.MISSING,
    *,
    metavar: str | None = None,
    choices: Collection[str] | None = None,
    parse: Callable[[str], Any] | None = None,
    within: Range = ANY,
) -> Any:
    """A field of a dataclass that :func:`add_fields` makes an option of the command line.

    Args:
        help: what the option does, in lower case. :func:`add_fields` adds the default to this text.
        default: default of the field. Without a default the option is required.
        metavar: placeholder for the value in the help. Default: by the type of the field.
        choices: the allowed values. Default: the values of a ``Literal``, else all values.
        parse: function from the word to the value. Default: by the type of the field.
        within: the allowed numbers of a field of numbers, on the command line and in :func:`check_fields`. Default: all
            finite numbers.

    Returns:
        A field of :mod:`dataclasses` that holds these properties as metadata.

    Example:
        >>> from captum_fam.cli.ranges import at_least
        >>> @dataclasses.dataclass
        ... class Episodes:
        ...     way: int = option("classes per episode", 5, within=at_least(1))
        >>> parser = argparse.ArgumentParser()
        >>> add_fields(parser, Episodes)
        >>> read_fields(Episodes, parser.parse_args(["--way", "3"]))
        Episodes(way=3)
    """
    metadata = {"help": help, "metavar": metavar, "choices": choices, "parse": parse, "within": within}
    return dataclasses.field(default=default, metadata=metadata)


def add_fields(
    parser: argparse.ArgumentParser,
    owner: type,
    *,
    skip: Collection[str] = (),
    defaults: Mapping[str, Any] | None = None,
) -> None:
    """Add an option to a parser for every :func:`option_fields` of a dataclass.

    A ``Literal`` field takes one of the literal values. A ``bool`` field is a switch, with a ``--no-`` form if the
    switch is on by default. A ``tuple`` field takes several values, separated by commas. An ``X | None`` field takes
    an X.

    Args:
        parser: parser that gets the options.
        owner: the dataclass.
        skip: names of fields that do not become options. Default: none.
        defaults: values that replace the defaults of fields, by name. Default: none.

    Example:
        See :func:`option`.
    """
    hints = get_type_hints(owner)
    for field in option_fields(owner):
        if field.name not in skip:
            default = (defaults or {}).get(field.name, _default(field))
            flag = f"--{field.name.replace('_', '-')}"
            parser.add_argument(flag, **_arguments(field, hints[field.name], default))


def option_fields(owner: type) -> list[dataclasses.Field[Any]]:
    """The fields of a dataclass that are made by :func:`option`.

    Args:
        owner: the dataclass.

    Returns:
        The fields, in the order of their definition.
    """
    return [field for field in dataclasses.fields(owner) if "help" in field.metadata]


def read_fields(owner: Callable[..., T], options: argparse.Namespace, **others: Any) -> T:
    """Make an instance of a dataclass from parsed options.

    Args:
        owner: the dataclass.
        options: the parsed options; a field without a parsed option keeps its default.
        **others: values of further fields; they replace parsed options of the same name.

    Returns:
        The instance.

    Example:
        See :func:`option`.
    """
    fields = option_fields(owner)  # type: ignore[arg-type]
    parsed = {field.name: getattr(options, field.name) for field in fields if hasattr(options, field.name)}
    return owner(**{**parsed, **others})


def check_fields(owner: Any) -> None:
    """Check the fields of an instance that are made by :func:`option`: their types, choices and ranges.

    A dataclass calls this function in ``__post_init__``, so that its values are checked however they were given.

    Args:
        owner: the instance of a dataclass.

    Raises:
        ValueError: for a number out of its range, or a value that is no choice of its field; the message names the
            field.
        TypeError: for a value that is no number where a number is expected.

    Example:
        >>> from captum_fam.cli.ranges import at_least
        >>> @dataclasses.dataclass
        ... class Episodes:
        ...     way: int = option("classes per episode", 5, within=at_least(2))
        >>> check_fields(Episodes(way=1))
        Traceback (most recent call last):
        ...
        ValueError: way must be at least 2, got 1
    """
    hints = get_type_hints(type(owner))
    for field in option_fields(type(owner)):
        value, hint = getattr(owner, field.name), _without_none(hints[field.name])
        if value is None and hint is not hints[field.name]:
            continue
        choices = _choices(field.metadata, hint)
        if choices is not None:
            if value not in choices:
                raise ValueError(f"{field.name} must be one of {', '.join(map(str, choices))}, got {value!r}")
            continue
        is_tuple = get_origin(hint) is tuple
        item_type = get_args(hint)[0] if is_tuple else hint
        if item_type in (int, float):
            for item in value if is_tuple else [value]:
                field.metadata["within"].check(field.name, item, whole=item_type is int)


def names_of(known: Collection[str], what: str) -> Callable[[str], tuple[str, ...]]:
    """A type for an option that takes one or more known names, separated by commas.

    Args:
        known: the known names.
        what: the kind of thing that the names stand for, for the message.

    Returns:
        A function from a word to a tuple of names without repetitions. It raises ``argparse.ArgumentTypeError`` for an
        unknown name.

    Example:
        >>> names_of(["fam", "cam"], "method")("cam, fam,cam")
        ('cam', 'fam')
    """

    def parse(text: str) -> tuple[str, ...]:
        names = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
        for name in names:
            if name not in known:
                raise argparse.ArgumentTypeError(
                    f"unknown {what} {name!r}, choose from {', '.join(known)}{did_you_mean(name, known)}"
                )
        return names

    return parse


def number_reader(value_type: Any, within: Range = ANY) -> Callable[[str], Any]:
    """A type for an option that takes a number of a range.

    Args:
        value_type: ``int`` or ``float``. Any other type takes any word, as a ``Path`` or a text.
        within: the allowed numbers. Default: all finite numbers.

    Returns:
        A function from a word to the value. It raises ``argparse.ArgumentTypeError`` for a word that is no such number.

    Example:
        >>> number_reader(float, Range(0, 1))("0.5")
        0.5
    """
    if value_type not in (int, float):
        return Path if value_type is Path else str

    def read(text: str) -> float:
        try:
            number: float = value_type(text)
        except ValueError:
            number = math.nan
        if number not in within:
            raise argparse.ArgumentTypeError(f"expected {within.words(whole=value_type is int)}, got {text!r}")
        return number

    return read


def default_out(parser: argparse.ArgumentParser, suffix: str = "") -> Path:
    """The folder or file to which a command writes by default, with the name of the command.

    Args:
        parser: parser of the command.
        suffix: end of the name, such as ``".png"``. Default: empty.

    Returns:
        A path relative to the current folder.

    Example:
        >>> str(default_out(argparse.ArgumentParser("captum-fam explain")))
        'captum-fam-explain'
    """
    return Path(parser.prog.replace(" ", "-") + suffix)


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _arguments(field: dataclasses.Field[Any], hint: Any, default: Any) -> dict[str, Any]:
    """The arguments of ``add_argument`` for a field."""
    value_type = _without_none(hint)
    text = field.metadata["help"]
    is_switch = value_type is bool and default is False
    if default not in (dataclasses.MISSING, None, "", ()) and not is_switch:
        text = f"{text}; default: {_as_text(default)}"
    arguments: dict[str, Any] = {"help": text.replace("%", "%%")}
    arguments |= {"required": True} if default is dataclasses.MISSING else {"default": default}
    if value_type is bool:
        return {**arguments, "action": "store_true" if is_switch else argparse.BooleanOptionalAction}
    return {**arguments, **_value_arguments(field.metadata, value_type)}


def _value_arguments(metadata: Mapping[str, Any], value_type: Any) -> dict[str, Any]:
    """The arguments of ``add_argument`` that say how a value is read: from the metadata, else from the type."""
    metavar, parse = metadata["metavar"], metadata["parse"]
    choices = _choices(metadata, value_type)
    if choices is not None:
        return {"choices": choices, "type": type(next(iter(choices))), "metavar": metavar}
    if parse is not None:
        return {"type": parse, "metavar": metavar or "N"}
    if get_origin(value_type) is tuple:
        item_type = number_reader(get_args(value_type)[0], metadata["within"])
        return {"type": _comma_separated(item_type), "metavar": metavar or "VALUE,..."}
    placeholders = {int: "N", float: "X", Path: "PATH"}
    return {
        "type": number_reader(value_type, metadata["within"]),
        "metavar": metavar or placeholders.get(value_type, "NAME"),
    }


def _choices(metadata: Mapping[str, Any], value_type: Any) -> Collection[Any] | None:
    """The allowed values of a field; None for all values."""
    choices: Collection[Any] | None = metadata["choices"]
    return get_args(value_type) if choices is None and get_origin(value_type) is Literal else choices


def _without_none(hint: Any) -> Any:
    """The type X of ``X | None``; any other type as it is."""
    if get_origin(hint) in (Union, types.UnionType):
        return next(part for part in get_args(hint) if part is not type(None))
    return hint


def _comma_separated(item_type: Callable[[str], Any]) -> Callable[[str], tuple[Any, ...]]:
    def parse(text: str) -> tuple[Any, ...]:
        return tuple(item_type(part.strip()) for part in text.split(",") if part.strip())

    return parse


def _as_text(default: Any) -> str:
    if isinstance(default, bool):
        return "yes" if default else "no"
    return ",".join(map(str, default)) if isinstance(default, tuple) else str(default)
