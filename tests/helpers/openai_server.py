"""A server with an OpenAI-compatible API around a transformers model, which fails on demand."""

import json
import threading
from collections import deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import torch


class OpenAIServer:
    """
    Serves `/v1/models`, `/v1/chat/completions` and `/v1/completions` (texts and token ids), one token per answer.

    Attributes set by the tests:
        failures: what happens to the next requests instead of an answer; see `Handler.fail`.
        processed: whether log-probabilities are those after temperature and top_p.
        most_logprobs: more are refused, as by vLLM. `sent_logprobs`: no more are sent, without a word.
        limit_name: name of the largest number of tokens in a chat; the other one is refused, as by OpenAI.
        stated: further entries of the model in the list of models.
        token: what clients must state. on_request: called with the number of requests so far.
    """

    def __init__(self, model, tokenizer, name="tiny"):
        self.model, self.tokenizer, self.name = model, tokenizer, name
        self.failures, self.requests, self.tokens_seen = deque(), [], set()
        self.processed, self.most_logprobs, self.sent_logprobs = False, len(tokenizer), len(tokenizer)
        self.token, self.on_request, self.refused_temperatures = None, lambda count: None, ()
        self.limit_name, self.stated = None, {}
        self.running, self.most_running, self.lock = 0, 0, threading.Lock()
        self.compute = threading.Lock()
        self.port = 0
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def start(self):
        self.http = ThreadingHTTPServer(("127.0.0.1", self.port), type("Bound", (Handler,), {"server_state": self}))
        self.port = self.http.server_address[1]
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self):
        self.http.shutdown()
        self.http.server_close()

    @torch.no_grad()
    def answer(self, ids: list[int], request: dict, num_likeliest: int):
        """The written token and the likeliest ones, with their log-probabilities."""
        with self.compute:
            logits = self.model(torch.tensor([ids])).logits[0, -1].float()
        raw = logits.log_softmax(-1)
        temperature, top_p = request.get("temperature", 1.0), request.get("top_p") or 1.0
        written = int(raw.argmax())
        if self.processed:
            raw = (logits / max(temperature, 1e-4)).log_softmax(-1)
            order = raw.argsort(descending=True)
            outside = raw[order].exp().cumsum(0) - raw[order].exp() >= top_p
            raw[order[outside]] = -torch.inf
            raw = raw.log_softmax(-1)
        values, places = raw.topk(min(num_likeliest, self.sent_logprobs))
        found = [(self.tokenizer.decode([int(p)]), float(v)) for p, v in zip(places, values, strict=True)]
        found = [(token, value) for token, value in found if value > -1e4]
        return (self.tokenizer.decode([written]), float(raw[written])), found


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server_state: OpenAIServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def send(self, status, body, content_type="application/json", **headers):
        content = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(content)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(content)

    def refuse(self, status, message):
        self.send(status, {"error": {"message": message, "type": "error", "code": status}}, Retry_After="0.01")

    def do_GET(self):
        state = self.server_state
        if self.path != "/v1/models" or state.name is None:
            return self.refuse(404, "Not Found")
        self.send(200, {"object": "list", "data": [{"id": state.name, "object": "model", **state.stated}]})

    def do_POST(self):
        state = self.server_state
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        given = self.headers.get("Authorization", "").removeprefix("Bearer ")
        with state.lock:
            state.requests.append(request)
            state.tokens_seen.add(given)
            count = len(state.requests)
            state.running += 1
            state.most_running = max(state.most_running, state.running)
            failure = state.failures.popleft() if state.failures else None
        try:
            state.on_request(count)
            if state.token is not None and given != state.token:
                self.refuse(401, f"Incorrect API key provided: {given}")
            elif failure is not None:
                self.fail(failure)
            else:
                self.complete(request)
        finally:
            with state.lock:
                state.running -= 1

    def fail(self, failure):
        if isinstance(failure, int):
            self.refuse(failure, f"failure {failure}")
        elif failure == "cut":
            self.close_connection = True
            self.connection.close()
        elif failure == "empty":
            self.send(200, self.body([], "", None, "stop"))
        elif failure == "part of a character":  # as llama.cpp sends it
            self.send(200, self.body([], "\ufffd", None, "length"))
        else:
            self.send(200, failure, "text/html" if "<" in failure else "application/json")

    def body(self, choices, text, logprobs, reason):
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "text": text, "logprobs": logprobs}
        choices = [*choices, {**choice, "finish_reason": reason}]
        return {"id": "1", "object": "chat.completion", "model": self.server_state.name or "tiny", "choices": choices}

    def complete(self, request):
        state = self.server_state
        if state.name is not None and request["model"] != state.name:
            return self.refuse(404, f"The model `{request['model']}` does not exist.")
        chat = self.path == "/v1/chat/completions"
        names = {"max_tokens", "max_completion_tokens"} & set(request)
        if chat and state.limit_name is not None and names != {state.limit_name}:
            return self.refuse(400, f"Unsupported parameter: {names}. Use '{state.limit_name}' instead.")
        wanted = request.get("top_logprobs", 0) if chat else request.get("logprobs", 0)
        if wanted > state.most_logprobs:
            return self.refuse(400, f"Requested logprobs of {wanted}, which is greater than {state.most_logprobs}")
        if request.get("temperature") in state.refused_temperatures:
            return self.refuse(422, "`temperature` must be strictly positive")
        if chat:
            ids = state.tokenizer.apply_chat_template(request["messages"], add_generation_prompt=True)["input_ids"]
        else:
            prompt = request["prompt"]
            ids = state.tokenizer(prompt)["input_ids"] if isinstance(prompt, str) else prompt
        if len(ids) >= state.model.config.max_position_embeddings:
            return self.refuse(400, f"This model's maximum context length is exceeded by {len(ids)} tokens")
        (token, value), likeliest = state.answer(ids, request, wanted)
        if state.sent_logprobs == 0:
            found = None
        elif chat:
            top = [{"token": each, "logprob": lp, "bytes": None} for each, lp in likeliest]
            found = {"content": [{"token": token, "logprob": value, "top_logprobs": top}]}
        else:
            found = {"tokens": [token], "token_logprobs": [value], "top_logprobs": [dict(likeliest)]}
        reply = self.body([], token, found, "length")
        self.send(200, {**reply, "usage": {"prompt_tokens": len(ids), "completion_tokens": 1}})
