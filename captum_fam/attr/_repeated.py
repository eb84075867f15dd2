"""What an ``attribute`` does when a method of Captum calls it with repeated inputs."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

from captum.log import log_usage

Attribute = TypeVar("Attribute", bound=Callable[..., Any])


def logged_attribute(attribute: Attribute) -> Attribute:
    """Captum's ``log_usage``; without a target, repeated inputs are refused where there are several classes.

    NoiseTunnel repeats the inputs with noise and calls ``attribute.__wrapped__``, which Captum leaves for calls of its
    own. Each noisy copy would be explained for the class that it is predicted as, and the mean of maps of different
    classes is a map of none.
    """

    @functools.wraps(attribute)
    def repeated(self: Any, *args: Any, **kwargs: Any) -> Any:
        self.require_target(*args, **kwargs)
        return attribute(self, *args, **kwargs)

    logged = log_usage()(attribute)
    logged.__wrapped__ = repeated
    return cast(Attribute, logged)
