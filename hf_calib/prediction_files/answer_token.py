"""Probabilities of the options from the log-probabilities of written tokens."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import accumulate
from string import ascii_uppercase
from typing import Any

from ..data.prompts import THINKING


_SPACES = " \t\r\n\u2581\u0120\u010a"  # and how tokenizers write a space or a line break
_AROUND = "()[]*.:,\"'"  # may be in one token with the letter
_ANNOUNCED = re.compile(r"(answer|option|choice)\W*(is|:)?\W*$", re.IGNORECASE)
_LARGEST_SUM = 1.05  # of rounded probabilities
_SMALLEST = 1e-9  # what is left for missing options is never 0


@lru_cache
def option_names(num_options: int, given: tuple[str, ...] = ()) -> tuple[str, ...]:
    """What the model writes for each option: the names given, or the letters from A."""
    if given:
        return given
    if num_options > len(ascii_uppercase):
        raise ValueError(f"{num_options} options have no letters: name them with --option_labels")
    return tuple(ascii_uppercase[:num_options])


def answer_position(tokens: Sequence[str], names: Sequence[str]) -> int:
    """
    Find the token that states the answer.

    It is the last one behind "answer:" or the like; else the first token, if it is an option; else the only one that
    is an option. Tokens of a thinking block do not count.

    Args:
        tokens (`Sequence[str]`):
            Tokens that the model wrote.
        names (`Sequence[str]`):
            What the model writes for each option.

    Raises:
        `ValueError`: no token, or more than one, can be the answer.
    """
    if len(tokens) == 1:  # an option or not, it is the answer
        return 0
    if thought := _thinking(tokens):
        if not _text(tokens[thought:]).strip():
            raise ValueError("nothing is written behind the thinking block")
        return thought + answer_position(tokens[thought:], names)
    places = [place for place, token in enumerate(tokens) if option_of(token, names) is not None]
    if not places:
        written = [place for place, token in enumerate(tokens) if token.strip(_SPACES)]
        if len(written) == 1:
            return written[0]
        raise ValueError(f"none of the tokens written is one of the options {', '.join(names)}")
    if len(places) == 1:
        return places[0]
    announced = [place for place in places if _ANNOUNCED.search(_text(tokens[:place]))]
    if announced:
        return announced[-1]
    if not _text(tokens[: places[0]]).strip(_SPACES + _AROUND):
        return places[0]
    raise ValueError(f"{len(places)} of the tokens written can be the answer: let the model write the letter alone")


def option_of(token: str, names: Sequence[str], around: bool = True) -> str | None:
    """
    Option that a token spells; `None` if it spells none.

    Args:
        token (`str`):
            A token. White space before and behind it, in any spelling, does not count; a wide letter is a letter.
        names (`Sequence[str]`):
            What the model writes for each option.
        around (`bool`, *optional*, defaults to `True`):
            Whether brackets and punctuation around the option may be in the token, as in "A." or "(A".
    """
    spelled = token.strip(_SPACES)
    if not spelled.isascii():
        spelled = unicodedata.normalize("NFKC", spelled)
    if spelled in names:
        return spelled
    return bare if around and (bare := spelled.strip(_AROUND)) in names else None


def _thinking(tokens: Sequence[str]) -> int:
    """Number of tokens up to the end of the last thinking block; 0 without one."""
    text, end = "".join(tokens), 0
    for opening, closing in THINKING.items():
        if text.rfind(opening) > text.rfind(closing):
            raise ValueError("the text ends inside its thinking block: raise max_tokens, or switch thinking off")
        if closing in text:
            end = max(end, text.rfind(closing) + len(closing))
    # The end may be of several tokens.
    return sum(length < end for length in accumulate(map(len, tokens))) + (end > 0)


def _text(tokens: Sequence[str]) -> str:
    return "".join(tokens).translate({ord(mark): " " for mark in _SPACES})


def option_scores(likeliest: Sequence[tuple[str, float]], names: Sequence[str], around: bool = True) -> list[float]:
    """
    Log-probability of each option at the position of the answer.

    Tokens that spell the same option, such as "A" and " A", add up; see [`option_of`]. Options that are not among the
    likeliest tokens share what these leave of the probability equally, up to the smallest probability of a likeliest
    token; if none is, all have the same probability.

    Args:
        likeliest (`Sequence[tuple[str, float]]`):
            Likeliest tokens and their log-probabilities, the written token first: it may be an unlikely one.
        names (`Sequence[str]`):
            What the model writes for each option.
        around (`bool`, *optional*, defaults to `True`):
            See [`option_of`].
    """
    masses = listed_masses(likeliest, names, around)
    probabilities = [math.exp(log_probability) for _, log_probability in likeliest]
    missing = sum(mass == 0 for mass in masses)
    share = (1 - sum(probabilities)) / missing if missing else 0.0
    share = max(min([share, *probabilities[1:]]), _SMALLEST / len(names))
    return [math.log(mass or share) for mass in masses]


def listed_masses(likeliest: Iterable[tuple[str, float]], names: Sequence[str], around: bool = True) -> list[float]:
    """Probability of each option among the likeliest tokens, 0 for one that is not; see [`option_scores`]."""
    masses = dict.fromkeys(names, 0.0)
    for token, log_probability in likeliest:
        if (name := option_of(token, names, around)) is not None:
            masses[name] += math.exp(log_probability)
    return list(masses.values())


def likeliest_tokens(position: Mapping[str, Any]) -> list[tuple[str, float]]:
    """
    Likeliest tokens at a position of a chat completion, the written one first.

    Args:
        position (`Mapping`):
            `token`, `logprob` and `top_logprobs` (a list of such objects, or log-probabilities by token).

    Raises:
        `ValueError`: the position has no `top_logprobs`, or they are no log-probabilities.
    """
    top = position.get("top_logprobs")
    if not top:
        raise ValueError("there are no top_logprobs: request them, as many as the API allows (e.g. top_logprobs=20)")
    pairs = list(top.items()) if isinstance(top, Mapping) else [(each["token"], each["logprob"]) for each in top]
    _check(pairs)
    if (written := position.get("token")) is None:
        return pairs
    place = next((place for place, (token, _) in enumerate(pairs) if token == written), None)
    first = (written, position["logprob"]) if place is None else pairs.pop(place)
    return [first, *pairs]


def _check(likeliest: Sequence[tuple[str, Any]]) -> None:
    """Check that the probabilities of different tokens can be those of one distribution."""
    total = 0.0
    for token, value in likeliest:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or math.isnan(value):
            raise ValueError(f"the log-probability of the token {token!r} is {value!r}, not a number")
        total += math.exp(min(value, 1.0))
    if total > _LARGEST_SUM:
        token, value = max(likeliest, key=lambda pair: pair[1])
        raise ValueError(
            f"the probabilities of the likeliest tokens add up to {total:.3g} (the log-probability of {token!r} is "
            f"{value:g}): these are no natural logarithms of probabilities"
        )
