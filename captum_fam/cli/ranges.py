"""Ranges of numbers, for the values of options."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral, Real


@dataclass(frozen=True)
class Range:
    """A range of numbers. NaN and infinite numbers lie in no range.

    Attributes:
        least: the smallest number. Default: none.
        most: the largest number. Default: none.
        without_least: whether ``least`` itself is outside. Default: False.
        without_most: whether ``most`` itself is outside. Default: False.

    Example:
        >>> 0.0 in above(0), 1 in between(0, 1), float("nan") in ANY
        (False, True, False)
    """

    least: float = -math.inf
    most: float = math.inf
    without_least: bool = False
    without_most: bool = False

    def __contains__(self, number: object) -> bool:
        """Whether something is a number in the range."""
        return (
            isinstance(number, int | float)
            and abs(number) < math.inf  # which NaN is not either
            and (self.least < number if self.without_least else self.least <= number)
            and (number < self.most if self.without_most else number <= self.most)
        )

    def words(self, whole: bool = False) -> str:
        """The range in words, such as ``"a whole number, at least 1"``.

        Args:
            whole: whether only whole numbers count. Default: False.
        """
        kind = "a whole number" if whole else "a number"
        bounds = str(self)
        return f"{kind}, {bounds}" if bounds else kind

    def __str__(self) -> str:
        parts = []
        if self.least > -math.inf:
            parts.append(f"{'above' if self.without_least else 'at least'} {self.least:g}")
        if self.most < math.inf:
            parts.append(f"{'below' if self.without_most else 'at most'} {self.most:g}")
        return " and ".join(parts)

    def check(self, name: str, value: object, whole: bool = False) -> None:
        """Refuse a value outside the range.

        Args:
            name: name of the argument, for the message.
            value: the value.
            whole: whether it must be a whole number. Default: False.

        Raises:
            TypeError: for a value that is no number, or no whole number where one is expected.
            ValueError: for a number outside the range.

        Example:
            >>> at_least(1).check("shot", 0, whole=True)
            Traceback (most recent call last):
            ...
            ValueError: shot must be at least 1, got 0
        """
        if isinstance(value, bool) or not isinstance(value, Integral if whole else Real):
            raise TypeError(f"{name} must be {self.words(whole)}, got {value!r}")
        if value not in self:
            raise ValueError(f"{name} must be {str(self) or 'finite'}, got {value!r}")


ANY = Range()
"""All finite numbers."""


def at_least(least: float) -> Range:
    """The numbers from a smallest number on.

    Args:
        least: the smallest number.

    Example:
        >>> print(at_least(2))
        at least 2
    """
    return Range(least)


def above(bound: float) -> Range:
    """The numbers above a bound.

    Args:
        bound: the bound, which is outside.

    Example:
        >>> print(above(0))
        above 0
    """
    return Range(bound, without_least=True)


def between(least: float, most: float, *, without_most: bool = False) -> Range:
    """The numbers from a smallest to a largest number.

    Args:
        least: the smallest number.
        most: the largest number.
        without_most: whether ``most`` itself is outside. Default: False.

    Example:
        >>> print(between(0, 1))
        at least 0 and at most 1
    """
    return Range(least, most, without_most=without_most)
