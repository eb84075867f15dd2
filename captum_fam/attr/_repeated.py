"""A decorator of ``attribute`` that checks the repeated inputs of Captum's NoiseTunnel."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

from captum.log import log_usage

Attribute = TypeVar("Attribute", bound=Callable[..., Any])


def logged_attribute(attribute: Attribute) -> Attribute:
    """Captum's ``log_usage``, with a check of repeated inputs.

    NoiseTunnel repeats the inputs with noise and calls ``attribute.__wrapped__``; direct calls of the user do not take
    this way. Without a target each noisy copy would be explained for its own predicted class, and a mean of maps of
    different classes explains no class. ``require_target`` of the method refuses such calls.
    """

    @functools.wraps(attribute)
    def attribute_repeated(self: Any, *args: Any, **kwargs: Any) -> Any:
        self.require_target(*args, **kwargs)
        return attribute(self, *args, **kwargs)

    logged = log_usage()(attribute)
    logged.__wrapped__ = attribute_repeated
    return cast(Attribute, logged)
