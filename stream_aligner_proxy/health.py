"""Asking a running proxy how it is: for containers, whose images have no other HTTP client.

Standard library only: a probe every few seconds must not load a server's libraries.
"""

from http.client import HTTPException
from urllib.error import HTTPError, URLError
from urllib.request import ProxyHandler, Request, build_opener


def trouble(url: str, timeout: float, key: str | None = None) -> str | None:
    """What is wrong at `url`, or None where it answers 200 within `timeout` seconds.

    `key` is sent as a bearer token; what is wrong does not tell it."""
    # A proxy that the environment names is for the way out, not for the way to oneself.
    opener = build_opener(ProxyHandler({}))
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    try:
        with opener.open(Request(url, headers=headers), timeout=timeout) as answer:
            return None if answer.status == 200 else f"{url} answers {answer.status}"
    except HTTPError as error:
        with error:
            return f"{url} answers {error.code}"
    except (OSError, HTTPException, ValueError) as error:
        cause = error.reason if isinstance(error, URLError) else error
        why = cause.strerror if isinstance(cause, OSError) else None
        return f"{url} does not answer ({why or type(cause).__name__})"
