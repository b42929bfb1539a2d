"""What can go wrong between a client and a server, in words that say what to do."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    import openai

_TOO_LONG = re.compile(
    r"context.{0,12}(length|size|window)|maximum.{0,12}length|too long|`inputs`.*tokens", re.IGNORECASE
)


class EndpointError(OSError):
    """The server cannot be reached, refuses the token, fails, or sends something that cannot be read."""


class NoAnswerError(ValueError):
    """The answer to one request is empty."""


class RequestRefusedError(ValueError):
    """
    The server refuses one request.

    Attributes:
        too_long (`bool`): Whether the prompt is longer than the model's context, by the server's words.
    """

    def __init__(self, message: str):
        super().__init__(message)
        self.too_long = _TOO_LONG.search(message) is not None


def explain(
    error: openai.APIError,
    endpoint: str,
    token: str | None,
    served_names: Callable[[], list[str] | None] = lambda: None,
) -> EndpointError | RequestRefusedError:
    """
    Turn an error of the client into one that says what to do.

    Args:
        error (`openai.APIError`):
            The client's error, after its retries.
        endpoint (`str`):
            Root of the API.
        token (`str`, *optional*):
            The token in use. Where the server repeats it, it is replaced by asterisks.
        served_names (`Callable`, *optional*):
            Names of the models that the server states, for an unknown model.
    """
    import openai

    if isinstance(error, openai.APITimeoutError):
        return EndpointError(f"{endpoint} did not answer in time: is it overloaded? Lower the concurrency.")
    if isinstance(error, openai.APIConnectionError):
        cause = type(error.__cause__).__name__ if error.__cause__ is not None else "no connection"
        return EndpointError(f"{endpoint} cannot be reached ({cause}): is the server running?")
    status, said = getattr(error, "status_code", None), _said(error, token)
    if status in (401, 403):
        return EndpointError(
            f"{endpoint} refuses the token (status {status}: {said}): set OPENAI_API_KEY, or HF_TOKEN for a host "
            "under huggingface.co"
        )
    if status == 404:
        names = served_names()
        known = f"the server serves {_listed(names)}" if names else "does the URL end in /v1?"
        return EndpointError(f"{endpoint} knows no such model or address ({said}): {known}")
    if status == 429:
        return EndpointError(f"{endpoint} still limits the rate of requests ({said}): lower the concurrency")
    if status is not None and 400 <= status < 500:
        return RequestRefusedError(f"{endpoint} refuses a request (status {status}): {said}")
    return EndpointError(f"{endpoint} fails (status {status}): {said}")


def _said(error: openai.APIError, token: str | None) -> str:
    """The server's own words, shortened, without the token."""
    body: Any = error.body
    words = body.get("message") or body.get("error") or body.get("detail") if isinstance(body, dict) else body
    words = str(words if words else error.message)
    words = words.replace(token, "***") if token else words
    return words if len(words) <= 300 else f"{words[:300]} ..."


def unknown_model(endpoint: str, model: str, names: list[str]) -> EndpointError:
    """The error for a model that a server does not serve."""
    return EndpointError(f"{endpoint} does not serve {model!r} but {_listed(names)}")


def _listed(names: list[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:8])
    return shown if len(names) <= 8 else f"{shown} and {len(names) - 8} more"
