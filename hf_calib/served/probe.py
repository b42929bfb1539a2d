"""Probe a server before the questions are sent: its model, and whether sampling changes its log-probabilities."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from .client import LogProbabilities, Prompt, RequestSampling, ServedModel
from .errors import EndpointError, NoAnswerError, RequestRefusedError, unknown_model


logger = logging.getLogger(__name__)

# The model's own distribution, even where sampling changes the log-probabilities.
NEUTRAL = RequestSampling(temperature=1.0, top_p=1.0)
_OTHER = (RequestSampling(temperature=0.0), RequestSampling(temperature=2.0, top_p=0.1))
# Largest difference, in nats, that is no effect of sampling where a repeated request differs by less than a third of
# it, and the smallest probability that is compared.
_TOLERANCE, _COMPARED = 0.1, 1e-3


@dataclass(frozen=True)
class ServerProbe:
    """
    What a server does with log-probabilities.

    Args:
        reported_model (`str`, *optional*):
            Name of the model in the server's answers.
        num_likeliest (`int`):
            Number of likeliest tokens that it sends.
        sampling (`str`):
            `"untouched"`: temperature and top_p do not change the log-probabilities. `"touched"`: they do.
            `"unknown"`: the server refuses other temperatures.
        repeat_difference (`float`, *optional*):
            Largest difference of a log-probability between two equal requests, in nats.
        sampling_difference (`float`, *optional*):
            Largest difference of a log-probability between temperatures, in nats.
    """

    reported_model: str | None
    num_likeliest: int
    sampling: str
    repeat_difference: float = 0.0
    sampling_difference: float | None = None

    @property
    def request(self) -> RequestSampling:
        """How to request log-probabilities of the model, whatever sampling does."""
        # At temperature 0 an answer is empty only where its end is the likeliest token.
        return RequestSampling() if self.sampling == "untouched" else NEUTRAL

    def describe(self) -> str:
        """What was found about sampling, in a sentence."""
        if self.sampling == "unknown":
            return (
                "the server refuses other temperatures: whether sampling changes its log-probabilities is not known; "
                "they are requested at temperature 1"
            )
        found = (
            f"they differ by {self.sampling_difference:.2g} nats between temperatures 0, 1 and 2, and by "
            f"{self.repeat_difference:.2g} between equal requests"
        )
        if self.sampling == "untouched":
            return f"sampling does not change the log-probabilities ({found})"
        return (
            f"sampling changes the log-probabilities ({found}). They are requested at temperature 1 and top_p 1, "
            "where they are the model's unless the server has a top_k, a penalty or a bias of its own. Prefer "
            "log-probabilities from before sampling (vLLM: --logprobs-mode raw_logprobs)"
        )

    def as_dict(self) -> dict[str, Any]:
        """The fields, for the metadata of predictions."""
        return asdict(self)


def probe_server(served: ServedModel, prompt: Prompt, num_options: int) -> ServerProbe:
    """
    Request the likeliest tokens after one prompt, at three temperatures.

    Args:
        served ([`ServedModel`]):
            The model.
        prompt:
            A prompt as it will be sent; see [`ServedModel.answer`].
        num_options (`int`):
            Largest number of options of a question.

    Returns:
        [`ServerProbe`]: what was found. It is logged: a warning where sampling changes the log-probabilities.

    Raises:
        [`EndpointError`]: if the server has no such model or sends no log-probabilities, or fewer than options.
    """
    requested = served.options.top_logprobs
    if requested < num_options:
        raise ValueError(
            f"top_logprobs={requested}, but a question has {num_options} options: request at least as many"
        )
    names = served.served_names()
    try:
        body = served.answer(prompt, NEUTRAL)
    except RequestRefusedError as error:
        raise _refused(served, error, names) from None
    reported = body.get("model") if isinstance(body.get("model"), str) else None
    if names and served.model not in names and reported != served.model:
        # llama.cpp and TGI answer for whatever name is given
        raise unknown_model(served.endpoint, served.model, names)
    first = _first(served, prompt, body)
    # a server may compute what it has in its cache otherwise, so that the first request differs from all others
    likeliest = _first(served, prompt, served.answer(prompt, NEUTRAL))
    if len(likeliest) < num_options:
        raise EndpointError(
            f"{served.endpoint} sends the {len(likeliest)} likeliest tokens, fewer than the {num_options} options of "
            "a question: raise the server's limit (vLLM: --max-logprobs, TGI: --max-top-n-tokens)"
        )
    if len(likeliest) < requested:
        logger.warning(f"{served.endpoint} sends {len(likeliest)} likeliest tokens of {requested} requested")
    changes = []
    for sampling in _OTHER:
        try:
            other = served.likeliest(prompt, sampling)
        except (RequestRefusedError, NoAnswerError):
            continue
        changes += differences(likeliest, other)
    repeated, largest = max(differences(first, likeliest), default=0.0), max(changes, default=None)
    touched = largest is not None and largest > max(_TOLERANCE, 3 * repeated)
    sampling = "unknown" if largest is None else "touched" if touched else "untouched"
    found = ServerProbe(reported, len(likeliest), sampling, repeated, largest)
    logger.log(logging.INFO if sampling == "untouched" else logging.WARNING, f"{served.endpoint}: {found.describe()}")
    return found


def _first(served: ServedModel, prompt: Prompt, body: Mapping[str, Any]) -> LogProbabilities:
    """The likeliest tokens of the first answer that is not empty."""
    for _ in range(4):
        try:
            return served.first_token(body)
        except NoAnswerError:
            body = served.answer(prompt, NEUTRAL)
    raise EndpointError(
        f"{served.endpoint} answers the first question with nothing, or with parts of characters without "
        f"log-probabilities: does the prompt end where {served.model} answers, and does the server support `logprobs`?"
    )


def differences(likeliest: LogProbabilities, other: LogProbabilities) -> list[float]:
    """
    Differences of log-probabilities in nats, without their signs.

    Args:
        likeliest (`list[tuple[str, float]]`), other (`list[tuple[str, float]]`):
            The likeliest tokens of two answers. Tokens of the first are compared that have a probability of at least
            0.001; one that the second lacks is taken to have the smallest probability there.
    """
    # Several tokens may be spelled alike, as parts of a character are: the likeliest of each spelling is compared.
    first, found = (dict(sorted(each, key=lambda pair: pair[1])) for each in (likeliest, other))
    smallest = min(found.values(), default=-math.inf)  # of a token that the other list lacks
    compared = [(token, value) for token, value in first.items() if value >= math.log(_COMPARED)]
    return [abs(value - found.get(token, smallest)) for token, value in compared]


def _refused(served: ServedModel, error: RequestRefusedError, names: list[str] | None) -> Exception:
    """What to do about a refused first request."""
    words = str(error).lower()
    if "logprob" in words or "top_n" in words:
        return EndpointError(f"{error}. Set --top_logprobs to what this server allows (TGI: 5).")
    if names and served.model not in names:
        return unknown_model(served.endpoint, served.model, names)
    return EndpointError(str(error))
