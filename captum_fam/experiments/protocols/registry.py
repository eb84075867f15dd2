"""The protocols by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from captum_fam.experiments.protocols.base import Protocol

P = TypeVar("P", bound=type[Protocol])

PROTOCOLS: dict[str, type[Protocol]] = {}
"""All protocols by the name that the command line has for them."""


def register_protocol(name: str) -> Callable[[P], P]:
    """Name a protocol, so that ``captum-fam evaluate`` has it.

    Args:
        name: of the subcommand and in the results.

    Returns:
        A decorator of a dataclass that inherits :class:`~captum_fam.experiments.protocols.base.Protocol`. Fields made
        by :func:`captum_fam.cli.options.option` become options of the command line.

    Raises:
        ValueError: for a name that is taken.
        TypeError: for something else than a class of a protocol.

    Example:
        >>> @register_protocol("single")
        ... @dataclass(eq=False, kw_only=True)
        ... class Single(Protocol):
        ...     shot: int = option("supports per class", 1)
    """

    if name in PROTOCOLS:
        raise ValueError(f"name {name!r} is taken by another protocol; choose another")

    def register(protocol: P) -> P:
        if not (isinstance(protocol, type) and issubclass(protocol, Protocol)):
            raise TypeError(f"protocol must be a class that inherits Protocol, got {protocol!r}")
        protocol.name = name
        PROTOCOLS[name] = protocol
        return protocol

    return register


def get_protocol(name: str) -> type[Protocol]:
    """A protocol by name.

    Raises:
        ValueError: for an unknown name.
    """
    if name not in PROTOCOLS:
        raise ValueError(f"protocol {name!r} is unknown; give {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]


def list_protocols() -> tuple[str, ...]:
    """The names of all protocols that there are now."""
    return tuple(PROTOCOLS)
