"""Requests to a model behind a server with an OpenAI-compatible API (vLLM, SGLang, TGI, llama.cpp, OpenAI, ...)."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar
from urllib.parse import urlsplit

from ..prediction_files.answer_token import likeliest_tokens
from ..prediction_files.chat_completions import positions
from .errors import EndpointError, NoAnswerError, RequestRefusedError, explain


Item, Result = TypeVar("Item"), TypeVar("Result")
# Messages of a chat; or a text or its token ids, which the model continues.
Prompt: TypeAlias = list[dict[str, str]] | str | list[int]
LogProbabilities: TypeAlias = list[tuple[str, float]]

# This domain and its subdomains get the token of the Hub. Users own hosts under hf.space and huggingface.cloud.
_HUB_DOMAIN = "huggingface.co"
# Fields of a request that extra_body must not replace. Those of sampling would escape the probe.
_OWN_FIELDS = frozenset({
    "model", "messages", "prompt", "logprobs", "top_logprobs", "stream", "n", "temperature", "top_p", "max_tokens",
    "max_completion_tokens", "seed", "stop",
})  # fmt: skip
# Attempts at an answer that can be read; the client itself repeats requests that fail.
_ATTEMPTS = 3


@dataclass(frozen=True)
class ServedOptions:
    """
    Options of [`ServedModel`].

    Args:
        concurrency (`int`, *optional*, defaults to `8`):
            Largest number of requests at a time.
        top_logprobs (`int`, *optional*, defaults to `20`):
            Number of likeliest tokens to request, at least 2. vLLM and OpenAI allow 20, TGI 5 unless told otherwise.
        max_retries (`int`, *optional*, defaults to `8`):
            How often a request is repeated after status 408, 409, 429 or 5xx and after a failed connection, with
            growing waits of up to 8 seconds, or as long as the server says.
        timeout (`float`, *optional*, defaults to `300.0`):
            Seconds to wait for an answer.
        extra_body (`Mapping`, *optional*):
            Further fields of each request, e.g. `{"chat_template_kwargs": {"enable_thinking": False}}`.
        drop_unanswered (`bool`, *optional*, defaults to `False`):
            Leave out and count questions with an empty answer, instead of raising.

    Raises:
        `ValueError`: for a value outside its range.
    """

    concurrency: int = 8
    top_logprobs: int = 20
    max_retries: int = 8
    timeout: float = 300.0
    extra_body: Mapping[str, Any] = field(default_factory=dict)
    drop_unanswered: bool = False

    def __post_init__(self):
        for name, least in (("concurrency", 1), ("top_logprobs", 2), ("max_retries", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)}; it must be at least {least}")
        if self.timeout <= 0:
            raise ValueError(f"timeout={self.timeout}; it must be positive")
        if own := _OWN_FIELDS & set(self.extra_body):
            raise ValueError(f"extra_body sets {sorted(own)[0]!r}, which every request sets itself")


@dataclass(frozen=True)
class RequestSampling:
    """
    How a server samples the tokens of an answer.

    Args:
        temperature (`float`, *optional*, defaults to `0.0`), top_p (`float`, *optional*):
            As in the API; `None` leaves `top_p` to the server.
        max_tokens (`int`, *optional*, defaults to `1`):
            Largest number of tokens.
        seed (`int`, *optional*):
            Seed, for servers that take one.
        stop (`tuple[str, ...]`, *optional*):
            Texts that end the answer.
    """

    temperature: float = 0.0
    top_p: float | None = None
    max_tokens: int = 1
    seed: int | None = None
    stop: tuple[str, ...] = ()

    def fields(self) -> dict[str, Any]:
        """The fields of a request; those that are not set are left out."""
        given = {"top_p": self.top_p, "seed": self.seed, "stop": list(self.stop) or None}
        stated = {name: value for name, value in given.items() if value is not None}
        return {"temperature": self.temperature, "max_tokens": self.max_tokens, **stated}


@dataclass(frozen=True)
class Generation:
    """
    An answer that a served model wrote.

    Args:
        text (`str`):
            The answer.
        tokens (`list[str]`), log_probabilities (`list[float]`):
            Its tokens, as the server spells them, and the log-probability of each, in nats.
        finished (`bool`):
            Whether the model ended the answer itself, within `max_tokens`.
    """

    text: str
    tokens: list[str]
    log_probabilities: list[float]
    finished: bool


class ServedModel:
    """
    A model behind a server with an OpenAI-compatible API.

    The token is read from `OPENAI_API_KEY`; if that is not set, from `HF_TOKEN` for https hosts under `huggingface.co`
    alone, e.g. `router.huggingface.co`. Spaces (`hf.space`) and Inference Endpoints (`huggingface.cloud`) belong to
    users: their token is set as `OPENAI_API_KEY`. It is sent to the server, and appears in no file and no message.

    Args:
        endpoint (`str`):
            Root of the API, e.g. `"http://localhost:8000/v1"`.
        model (`str`):
            Name of the model on the server.
        options ([`ServedOptions`], *optional*):
            Limits of the requests.

    Raises:
        `ImportError`: without the package openai (the extra `served`).
        `ValueError`: for an endpoint that is no such URL, or that holds a user, a password or a query.
    """

    def __init__(self, endpoint: str, model: str, options: ServedOptions | None = None):
        import openai

        self.endpoint, self.model, self.options = _checked(endpoint), model, options or ServedOptions()
        self._token, self._limit = _token(self.endpoint), "max_tokens"
        self.identities: dict[bool, Any] = {}  # see ServedIdentity.of_model
        self._openai = openai
        self._client = openai.OpenAI(
            base_url=self.endpoint,
            api_key=self._token or "none",  # the client wants one
            max_retries=self.options.max_retries,
            timeout=self.options.timeout,
        )

    def close(self) -> None:
        """Close the connections; requests that wait for an answer fail."""
        self._client.close()

    def served_names(self) -> list[str] | None:
        """Names of the models that the server states, or `None` if it states none."""
        listed = self.listed()
        return None if listed is None else [str(each["id"]) for each in listed]

    def listed(self) -> list[Mapping[str, Any]] | None:
        """What the server states of each of its models, or `None` if it lists none."""
        client = self._client.with_options(max_retries=min(2, self.options.max_retries))
        try:
            listed = json.loads(client.models.with_raw_response.list().text)["data"]
            return [each for each in listed if each["id"]]
        except self._openai.APIConnectionError as error:
            raise explain(error, self.endpoint, self._token) from None
        except (self._openai.APIStatusError, ValueError, LookupError, TypeError):
            return None

    def answer(self, prompt: Prompt, sampling: RequestSampling, top_logprobs: int | None = None) -> dict[str, Any]:
        """
        Request one answer with log-probabilities.

        Args:
            prompt (`list[dict]`, `str` or `list[int]`):
                Messages of a chat; or a text, or its token ids, to be continued as it is.
            sampling ([`RequestSampling`]):
                How tokens are sampled, and how many.
            top_logprobs (`int`, *optional*):
                Number of likeliest tokens at each position. Defaults to that of the options.

        Returns:
            `dict`: the completion, as the server sent it.

        Raises:
            [`EndpointError`]: if the server cannot be reached, refuses the token, fails, or sends no completion.
            [`RequestRefusedError`]: if it refuses this request.
        """
        top = self.options.top_logprobs if top_logprobs is None else top_logprobs
        request = {"model": self.model, **sampling.fields(), "extra_body": dict(self.options.extra_body)}
        if isinstance(prompt, list) and prompt and isinstance(prompt[0], Mapping):
            create = self._client.chat.completions.with_raw_response.create
            request |= {"messages": prompt, "logprobs": True, "top_logprobs": top}
        else:
            create = self._client.completions.with_raw_response.create
            request |= {"prompt": prompt, "logprobs": top}
        for _ in range(_ATTEMPTS):
            try:
                text = self._create(create, request)
            except self._openai.APIError as error:
                raise explain(error, self.endpoint, self._token, self.served_names) from None
            try:
                body = json.loads(text)
            except ValueError:
                continue
            if isinstance(body, dict) and isinstance(body.get("choices"), list):
                return body
        shown = text.replace(self._token, "***") if self._token else text
        raise EndpointError(
            f"{self.endpoint} answers with something else than a completion, {shown[:120]!r}: is this the "
            "root of an OpenAI-compatible API, which often ends in /v1?"
        )

    def _create(self, create: Callable, request: Mapping[str, Any]) -> str:
        """Send a request, with the largest number of tokens by the name that the server wants."""
        limit = self._limit
        request = {self._limit if name == "max_tokens" else name: value for name, value in request.items()}
        try:
            return create(**request).text
        except self._openai.BadRequestError as error:
            # OpenAI's newer chat models refuse `max_tokens`, and name what they want.
            if "max_completion_tokens" not in str(error) or limit != "max_tokens" or "messages" not in request:
                raise
        self._limit = "max_completion_tokens"
        return self._create(create, request)

    def likeliest(self, prompt: Prompt, sampling: RequestSampling | None = None) -> LogProbabilities:
        """
        Request the likeliest first tokens of the answer.

        Args:
            prompt:
                As in [`ServedModel.answer`].
            sampling ([`RequestSampling`], *optional*):
                How the server samples. Defaults to temperature 0.

        Returns:
            `list[tuple[str, float]]`: tokens and their log-probabilities, in nats; the one that was written first.

        Raises:
            [`NoAnswerError`]: if the answer is empty.
            [`EndpointError`]: also if the server sends no log-probabilities.
        """
        return self.first_token(self.answer(prompt, sampling or RequestSampling()))

    def first_token(self, body: Mapping[str, Any]) -> LogProbabilities:
        """The likeliest first tokens of a completion; see [`ServedModel.likeliest`]."""
        choice = _choice(body)
        try:
            found = likeliest_tokens(positions(body)[0])
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            # A token that is a part of a character is sent by llama.cpp as U+FFFD, without log-probabilities.
            part = set(_written(choice)) == {"\ufffd"}
            if part or (not _written(choice) and choice.get("finish_reason") in (None, "stop", "eos_token")):
                raise NoAnswerError("the answer is empty") from None
            raise EndpointError(
                f"{self.endpoint} sends no log-probabilities of {self.model} that can be read ({error}): the server "
                "must support `logprobs` and `top_logprobs`"
            ) from None
        # A server may state a probability of 0, which JSON has no logarithm for.
        return [(str(token), float(value)) for token, value in found if value is not None and value > -1e3]

    def generate(self, prompt: Prompt, sampling: RequestSampling) -> Generation:
        """
        Let the model write an answer, with the log-probability of each token.

        Args:
            prompt:
                As in [`ServedModel.answer`].
            sampling ([`RequestSampling`]):
                Temperature, number of tokens, seed.

        Returns:
            [`Generation`]: of an empty answer too.

        Raises:
            [`EndpointError`], [`RequestRefusedError`]: see [`ServedModel.answer`]; also if the server sends no
                log-probabilities of a written answer.
        """
        body = self.answer(prompt, sampling, top_logprobs=1)
        choice = _choice(body)
        text = _written(choice)
        try:
            found = positions(body)
            tokens = [str(each["token"]) for each in found]
            values = [float(each["logprob"]) for each in found]
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            if text:
                raise EndpointError(
                    f"{self.endpoint} sends no log-probabilities of {self.model} that can be read ({error})"
                ) from None
            tokens, values = [], []
        return Generation(text, tokens, values, choice.get("finish_reason") in ("stop", "eos_token", "stop_sequence"))

    def concurrently(
        self, work: Callable[[Item], Result], items: Iterable[Item]
    ) -> Iterator[tuple[Item, Result | NoAnswerError | RequestRefusedError]]:
        """
        Do requests at the same time, at most `concurrency` of them.

        Args:
            work (`Callable`):
                From an item to its result, by requests to this model.
            items (`Iterable`):
                The items.

        Yields:
            `tuple`: each item with its result as soon as there is one; with the error, where the server refuses this
            item alone or answers nothing.

        Raises:
            [`EndpointError`]: after all results of the requests that were under way.
        """
        items, failure, running = iter(items), None, {}
        with ThreadPoolExecutor(self.options.concurrency, thread_name_prefix="request") as pool:
            try:
                while True:
                    while failure is None and len(running) < self.options.concurrency:
                        try:
                            item = next(items)
                        except StopIteration:
                            break
                        running[pool.submit(work, item)] = item
                    if not running:
                        break
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        item = running.pop(future)
                        result = _outcome(future)
                        if isinstance(result, EndpointError):
                            failure = failure or result
                        else:
                            yield item, result
            except BaseException:
                self.close()  # ends what is under way
                raise
        if failure is not None:
            raise failure


def _outcome(future: Future) -> Any:
    """Result of a request, or the error that concerns this request or the server."""
    try:
        return future.result()
    except (EndpointError, NoAnswerError, RequestRefusedError) as error:
        return error


def _choice(body: Mapping[str, Any]) -> Mapping[str, Any]:
    """The first choice of a completion, or an empty one."""
    first = body["choices"][0] if body["choices"] else {}
    return first if isinstance(first, Mapping) else {}


def _written(choice: Mapping[str, Any]) -> str:
    """Text of a choice, of a chat or not."""
    message = choice.get("message")
    text = message.get("content") if isinstance(message, Mapping) else choice.get("text")
    return text if isinstance(text, str) else ""


def _checked(endpoint: str) -> str:
    """An endpoint without a slash at its end, if it is a URL without anything secret."""
    parts = urlsplit(endpoint)
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError(
            "the endpoint must be a URL such as http://localhost:8000/v1, without user, password and query: a token "
            "goes into the environment variable OPENAI_API_KEY"
        )
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"endpoint {endpoint!r}; it must be a URL such as http://localhost:8000/v1")
    return endpoint.rstrip("/")


def _token(endpoint: str) -> str | None:
    """Token for a server. That of the Hub goes to hosts that Hugging Face owns, and encrypted."""
    if token := os.environ.get("OPENAI_API_KEY"):
        return token
    parts = urlsplit(endpoint)
    host = parts.hostname or ""
    ours = parts.scheme == "https" and f".{host}".endswith(f".{_HUB_DOMAIN}")
    return os.environ.get("HF_TOKEN") or None if ours else None
