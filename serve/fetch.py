"""Images from other hosts: only from those that the server's owner named, without following them elsewhere."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Collection
from typing import Any
from urllib.parse import urlsplit

from ..errors import UserError

_SECONDS = 20
_CHUNK = 1 << 16


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *arguments: Any, **options: Any) -> None:
        return None


def fetch_image(url: str, hosts: Collection[str], most: int) -> bytes:
    """The bytes behind an address.

    Args:
        hosts: names, or names with a port, that may be asked.
        most: bytes that are taken.

    Raises:
        UserError: another host, an answer that is no success (a redirect included), or too many bytes.
    """
    place = urlsplit(url)
    if place.netloc not in hosts or place.scheme not in ("http", "https"):
        raise UserError(
            f"this server fetches no images from {place.netloc!r}: upload the file, or have the server started with "
            "--allow-url HOST."
        )
    # No proxy of the environment, and none of urllib's handlers for files.
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.HTTPDefaultErrorHandler(),
        _NoRedirect(),
    ):
        opener.add_handler(handler)
    data = bytearray()
    try:
        with opener.open(url, timeout=_SECONDS) as answer:
            while chunk := answer.read(_CHUNK):
                data += chunk
                if len(data) > most:
                    raise UserError(f"the image at this address is larger than {most / 2**20:g} MiB: scale it down.")
    except urllib.error.HTTPError as error:
        raise UserError(f"the image cannot be fetched: its host answered {error.code}; upload the file.") from None
    except UserError:
        raise
    except (OSError, ValueError) as error:
        raise UserError(f"the image cannot be fetched ({type(error).__name__}): upload the file.") from None
    return bytes(data)
