"""What tells a served model from another of the same name: a few log-probabilities, and what the server states."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..inference.resumable import write_whole
from .client import ServedModel
from .errors import EndpointError, NoAnswerError, RequestRefusedError
from .probe import NEUTRAL, differences


logger = logging.getLogger(__name__)

# Short texts with few likely continuations, and with many.
_TEXTS = (
    "The capital of France is",
    "2 + 2 =",
    "The opposite of cold is",
    "Once upon a time there was a",
    "def add(a, b):\n    return",
)
# Largest mean difference of a log-probability, in nats, of one model. On SmolLM2-135M bfloat16 and 8-bit weights
# differ from float32 by 0.05, 5-bit weights by 0.5 to 0.7, 4-bit weights by 0.8.
TOLERANCE = 0.1
# Facts about the weights that llama.cpp states. `created` is the time of the request there and in vLLM.
_WEIGHTS = ("n_params", "n_vocab", "size")


@dataclass(frozen=True)
class ServedIdentity:
    """
    Log-probabilities of a served model after a few texts, and what its server states of it.

    Args:
        likeliest (`list[list[tuple[str, float]]]`):
            The likeliest tokens after each text; empty where the server sends none.
        repeat_difference (`float`):
            Mean difference of a log-probability between two equal requests, in nats.
        stated (`dict`):
            `system_fingerprint`, `owned_by` and facts about the weights, where the server states them.
    """

    likeliest: list[list[tuple[str, float]]]
    repeat_difference: float
    stated: dict[str, Any]

    @classmethod
    def request(cls, served: ServedModel, chat: bool) -> ServedIdentity:
        """Request it: as messages of a chat, or as texts that the model continues."""
        found, fingerprints = [], []
        for text in (*_TEXTS, _TEXTS[0]):
            prompt = [{"role": "user", "content": text}] if chat else text
            try:
                body = served.answer(prompt, NEUTRAL, min(10, served.options.top_logprobs))
                found.append([(token, round(value, 4)) for token, value in served.first_token(body)])
                fingerprints.append(body.get("system_fingerprint"))
            except (NoAnswerError, RequestRefusedError):
                found.append([])
        stated = {"system_fingerprint": next(filter(None, fingerprints), None), **_stated(served)}
        repeated = found.pop()
        return cls(found, _mean([(found[0], repeated)]), {key: value for key, value in stated.items() if value})

    @classmethod
    def of_model(cls, served: ServedModel, chat: bool) -> ServedIdentity:
        """The identity of a served model, which is requested once for each object."""
        if chat not in served.identities:
            served.identities[chat] = cls.request(served, chat)
        return served.identities[chat]

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> ServedIdentity:
        """Read what [`ServedIdentity.as_dict`] returned."""
        likeliest = [[(token, value) for token, value in each] for each in content["likeliest"]]
        return cls(likeliest, content["repeat_difference"], content["stated"])

    def as_dict(self) -> dict[str, Any]:
        """The fields, for JSON."""
        return asdict(self)

    def difference(self, other: ServedIdentity) -> str | None:
        """How another model differs, in words; `None` if it is the same as far as can be told."""
        for name in _WEIGHTS:
            here, there = self.stated.get(name), other.stated.get(name)
            if None not in (here, there) and here != there:
                return f"the server states {name} {there} instead of {here}"
        mean = _mean(list(zip(self.likeliest, other.likeliest, strict=True)))
        if mean > max(TOLERANCE, 3 * self.repeat_difference, 3 * other.repeat_difference):
            return f"its log-probabilities differ by {mean:.2g} nats on average"
        for name in ("system_fingerprint", "owned_by"):
            here, there = self.stated.get(name), other.stated.get(name)
            if None not in (here, there) and here != there:
                logger.warning(f"the server states {name} {there!r} instead of {here!r}; its log-probabilities agree")
        return None


class KeptIdentity:
    """
    Identity of a served model that a run keeps in a file, and compares when it is resumed.

    Args:
        served ([`ServedModel`]), chat (`bool`):
            The model, and whether it is asked in chats.
        path (`Path`, *optional*):
            File of the identity, in a folder that the run makes before the check.
        resume (`bool`, *optional*, defaults to `True`):
            Whether the run continues from what an earlier one saved.
    """

    def __init__(self, served: ServedModel, chat: bool, path: Path | None = None, resume: bool = True):
        self.served, self.chat, self.path = served, chat, path
        self._saved, self._checked = None, False
        if path is not None and resume and path.is_file():
            self._saved = ServedIdentity.of(json.loads(path.read_text("utf-8")))

    def check(self) -> ServedIdentity:
        """
        Request the identity, once; compare it with the saved one, or save it.

        Raises:
            [`EndpointError`]: the saved answers are of another model.
        """
        if not self._checked:
            found = ServedIdentity.of_model(self.served, self.chat)
            if self._saved is not None and (how := self._saved.difference(found)):
                raise EndpointError(
                    f"{self.served.endpoint} serves another model as {self.served.model!r} than the one whose answers "
                    f"are saved, perhaps in another quantisation: {how}; choose another output folder, or overwrite "
                    "it with resume=False (`--no_resume`)"
                )
            if self._saved is None and self.path is not None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                write_whole(self.path, json.dumps(found.as_dict()))
            self._saved, self._checked = self._saved or found, True
        return self._saved

    def as_dict(self) -> dict[str, Any]:
        """The saved identity, for the metadata of predictions; it is requested if there is none."""
        return (self._saved or self.check()).as_dict()


def _stated(served: ServedModel) -> dict[str, Any]:
    """What the server's list of models states of this one that does not depend on the time or the place."""
    entry = next((each for each in served.listed() or () if each["id"] == served.model), {})
    meta = entry.get("meta")
    facts = {name: meta.get(name) for name in _WEIGHTS} if isinstance(meta, Mapping) else {}
    return {"owned_by": entry.get("owned_by"), **facts}


def _mean(pairs: list[tuple[list, list]]) -> float:
    """Mean difference of a log-probability over the texts for which both have some, in nats."""
    found = [each for first, other in pairs if first and other for each in differences(first, other)]
    return sum(found) / len(found) if found else 0.0
