"""Downloads that fail quickly, with what to do, where there is no network."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from captum_fam._files import need
from captum_fam._text import first_line
from captum_fam.models.weights_file import WeightsError

PATIENCE = 5.0
"""How long the connection to a host may take, in seconds."""

GIVE_A_FILE = "give a file with --weights FILE (weights=... in Python; --weights none for random weights)"
"""What a user can do about weights that cannot be downloaded."""


def check_reachable(url: str, what: str, remedy: str) -> None:
    """Check that the host of a download can be reached, before a library tries for a minute.

    Args:
        url: address of the download. A proxy in ``HTTPS_PROXY`` is respected.
        what: what is downloaded, for the message.
        remedy: what a user can do without the network, for the message.

    Raises:
        WeightsError: (a ``ValueError``) if the host cannot be reached within five seconds.

    Example:
        >>> check_reachable("https://download.pytorch.org/models/resnet18.pth", "resnet18", "copy the file")
    """
    reason = why_unreachable(url)
    if reason is not None:
        raise WeightsError(f"cannot download {what}: {reason}; {remedy}")


def why_unreachable(url: str) -> str | None:
    """Why the host of an address, or the proxy before it, cannot be reached.

    Args:
        url: address of a download.

    Returns:
        The reason in words; None if the host can be reached.

    Example:
        >>> why_unreachable("https://no-such-host.invalid/file")
        'no-such-host.invalid cannot be reached ([Errno -2] Name or service not known)'
    """
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    proxy = getproxies().get(parts.scheme)
    if proxy and not proxy_bypass(host):
        parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
        host, port = parts.hostname or "", parts.port or 80
    outcome: list[str | None] = []

    def connect() -> None:
        try:
            socket.create_connection((host, port), timeout=PATIENCE).close()
        except OSError as error:
            outcome.append(f"{host} cannot be reached ({error})")
        else:
            outcome.append(None)

    # In a thread, because looking up a name has no time limit of its own.
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    return outcome[0] if outcome else f"{host} cannot be reached within {PATIENCE:g} s"


@contextmanager
def hub(what: str, remedy: str) -> Iterator[bool]:
    """A context in which a library loads something from the Hugging Face hub, or from the files of earlier downloads.

    Without a network, the client of the hub is in its offline mode inside the context: it reads the files of earlier
    downloads, and fails at once for other files.

    Args:
        what: what is loaded, for the message.
        remedy: what a user can do without the network, for the message.

    Yields:
        Whether the hub can be reached.

    Raises:
        WeightsError: (a ``ValueError``) if the files are not there and the hub cannot be reached, or if the download
            fails.

    Example:
        >>> with hub("timm/resnet18", "give a file") as is_online:
        ...     network = timm.create_model("resnet18", pretrained=True)
    """
    constants = need("huggingface_hub.constants", extra="hf", purpose=what)
    was_offline = bool(constants.HF_HUB_OFFLINE)
    reason = "the hub is in offline mode" if was_offline else why_unreachable(constants.ENDPOINT)
    constants.HF_HUB_OFFLINE = reason is not None
    try:
        yield reason is None
    except WeightsError:
        raise
    except (OSError, RuntimeError) as error:
        if reason is None and not isinstance(error, OSError):
            raise
        because = reason or first_line(error)
        raise WeightsError(f"cannot download {what}: {because}; {remedy}") from error
    finally:
        constants.HF_HUB_OFFLINE = was_offline
