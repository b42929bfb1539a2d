"""Arguments of `hf-calib evaluate` for a model behind a server."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ..inference.predictions import OptionPredictions
    from ..served.client import ServedModel


# Entries on a served model that are in the metadata of its predictions alone.
HIDDEN = ("extra_body", "identity")


@dataclass(kw_only=True)
class ServedArguments:
    """
    Arguments of a command that asks a served model, for classes with `revision` and `trust_remote_code`.
    """

    help_group = "served model"

    endpoint: str | None = field(
        default=None,
        metadata={
            "help": "Root of an OpenAI-compatible API (vLLM, SGLang, TGI, llama.cpp, ...), as in "
            "http://localhost:8000/v1. --model is then the model's name on the server. The token is read from "
            "OPENAI_API_KEY, or from HF_TOKEN for https hosts under huggingface.co."
        },
    )
    tokenizer: str | None = field(
        default=None,
        metadata={
            "help": "With --endpoint: tokenizer of the served model, a folder or a name on the Hub. Prompts are then "
            "written here, as for a local model, and sent as token ids. Default: the server's chat template."
        },
    )
    concurrency: int = field(default=8, metadata={"help": "With --endpoint: requests at a time."})
    top_logprobs: int = field(default=20, metadata={"help": "With --endpoint: likeliest tokens to request (TGI: 5)."})
    max_retries: int = field(default=8, metadata={"help": "With --endpoint: repetitions of a failed request."})
    request_timeout: float = field(default=300.0, metadata={"help": "With --endpoint: seconds to wait for an answer."})
    extra_body: str | None = field(
        default=None,
        metadata={
            "help": "With --endpoint: further fields of each request, in JSON, as in "
            '\'{"chat_template_kwargs": {"enable_thinking": false}}\'.'
        },
    )
    drop_unanswered: bool = field(
        default=False, metadata={"help": "With --endpoint: leave out questions with an empty answer."}
    )

    def served_model(self, model: str) -> ServedModel:
        """The client of a served model."""
        from ..extras import with_advice
        from ..served.client import ServedModel, ServedOptions

        options = ServedOptions(
            concurrency=self.concurrency,
            top_logprobs=self.top_logprobs,
            max_retries=self.max_retries,
            timeout=self.request_timeout,
            extra_body=self._extra_body(),
            drop_unanswered=self.drop_unanswered,
        )
        try:
            return ServedModel(self.endpoint, model, options)
        except ModuleNotFoundError as error:
            raise with_advice(error) from error

    def served_tokenizer(self) -> PreTrainedTokenizerBase | None:
        """Tokenizer of the served model, if one is given."""
        from ..inference.model_loading import load_tokenizer

        return self.tokenizer and load_tokenizer(self.tokenizer, self.revision, self.trust_remote_code)

    def _extra_body(self) -> dict[str, Any]:
        try:
            found = json.loads(self.extra_body or "{}")
        except ValueError as error:
            raise ValueError(f"extra_body is no JSON ({error})") from None
        if not isinstance(found, dict):
            raise ValueError(f"extra_body must be a JSON object, got {self.extra_body}")
        return found


def served_summary(predictions: OptionPredictions) -> list[str]:
    """What the probe found and how many letters were missing, in lines for the terminal."""
    from ..served.probe import ServerProbe

    found = predictions.metadata["served"]
    probe = ServerProbe(**{name: found[name] for name in ServerProbe.__dataclass_fields__})
    lines = [
        f"{found['api']}: {probe.describe()}",
        f"option mass: {found['listed_mass']:.3f} of the probability is on letters that the server listed; "
        f"{found['missing_letters']} of {len(predictions)} questions lack some among the {found['num_likeliest']} "
        "likeliest tokens",
    ]
    if found["listed_mass"] < 0.5:
        lines.append(
            "warning: the model mostly starts its answers with something else than a letter: ask for the letter alone "
            "in --system_prompt, or give --tokenizer"
        )
    if found["unanswered"]:
        lines.append(f"warning: {found['unanswered']} questions with an empty answer were left out")
    return lines
