"""The registry of protocols by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from captum_fam._registration import check_not_taken
from captum_fam.experiments.protocols.base import Protocol

P = TypeVar("P", bound=type[Protocol])

PROTOCOLS: dict[str, type[Protocol]] = {}
"""All registered protocols by name."""


def register_protocol(name: str) -> Callable[[P], P]:
    """Register a protocol under a name, as a subcommand of ``captum-fam evaluate``.

    Args:
        name: name of the subcommand, which is also in the results.

    Returns:
        A decorator for a dataclass that inherits :class:`~captum_fam.experiments.protocols.base.Protocol`. Fields that
        are made by :func:`captum_fam.cli.options.option` become options of the command line.

    Raises:
        ValueError: by the decorator, for a name that another protocol has.
        TypeError: by the decorator, for an object that is no subclass of ``Protocol``.

    Example:
        >>> from dataclasses import dataclass
        >>> from captum_fam.cli.options import option
        >>> from captum_fam.experiments import Retrieval
        >>> @register_protocol("far-retrieval")
        ... @dataclass(eq=False, kw_only=True)
        ... class FarRetrieval(Retrieval):
        ...     summary = "retrieval in a gallery without near duplicates"
        ...     margin: float = option("least cosine of two duplicates", 0.95)
        >>> get_protocol("far-retrieval").name
        'far-retrieval'
    """

    def register(protocol: P) -> P:
        if not (isinstance(protocol, type) and issubclass(protocol, Protocol)):
            raise TypeError(f"protocol must be a class that inherits Protocol, got {protocol!r}")
        check_not_taken(name, PROTOCOLS.get(name), protocol, "protocol")
        protocol.name = name
        PROTOCOLS[name] = protocol
        return protocol

    return register


def get_protocol(name: str) -> type[Protocol]:
    """The protocol of a name.

    Args:
        name: a registered name.

    Returns:
        The class of the protocol.

    Raises:
        ValueError: for an unknown name.

    Example:
        >>> from captum_fam.experiments import FewShot
        >>> get_protocol("few-shot") is FewShot
        True
    """
    if name not in PROTOCOLS:
        raise ValueError(f"protocol {name!r} is unknown; give {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]


def list_protocols() -> tuple[str, ...]:
    """The names of all registered protocols.

    Example:
        >>> from captum_fam.experiments import FewShot
        >>> "few-shot" in list_protocols()
        True
    """
    return tuple(PROTOCOLS)
