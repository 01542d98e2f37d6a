"""What the body of a request to the HTTP API may hold: read, checked, and refused in the API's own words.

Paper: none; the parameters are those of OpenAI's completions and chat completions, which DeepSeek's API has too.

    served    model, prompt or messages, max_tokens, temperature, top_p, frequency_penalty, seed, stop, stream, ..
    harmless  user, metadata, ..: they change nothing in the answer, and are ignored
    neutral   n, logprobs, presence_penalty, ..: taken at the value that asks for nothing (n = 1), refused at others
    unknown   refused by name: a parameter that is dropped in silence gives answers that nobody asked for

A refusal is an `ApiError`: the rule, the value, the remedy, and the parameter's name.

Differs from the paper: nothing to differ from.
Left out: several prompts or choices, log probabilities, tools, JSON mode, images.
Notebook: 17_serving.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from minids.generate import Sampling
from minids.tokenizer import Tokenizer

SERVED = {
    "completion": ("model", "prompt", "max_tokens", "temperature", "top_p", "frequency_penalty", "seed", "stop",
                   "stream", "stream_options"),
    "chat": ("model", "messages", "max_tokens", "max_completion_tokens", "temperature", "top_p", "frequency_penalty",
             "seed", "stop", "stream", "stream_options"),
}  # fmt: skip
HARMLESS = ("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "parallel_tool_calls")
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "n": (1,), "best_of": (1,), "presence_penalty": (0, 0.0), "logprobs": (False,), "top_logprobs": (0,),
    "echo": (False,), "suffix": ("",), "logit_bias": ({},), "tools": ([],), "tool_choice": ("none", "auto"),
    "response_format": ({"type": "text"},), "modalities": (["text"],),
}  # fmt: skip
ROLES = ("system", "user", "assistant")
MOST_STOPS, LONGEST_STOP = 4, 256


class ApiError(Exception):
    """A refusal, in the shape of the API's errors."""

    def __init__(
        self,
        message: str,
        param: str | None = None,
        status: int = 400,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(message)
        self.message, self.param, self.status, self.code, self.headers = message, param, status, code, headers

    def body(self) -> dict[str, Any]:
        kind = {429: "rate_limit_error"}.get(self.status, "server_error" if self.status >= 500 else None)
        kind = kind or "invalid_request_error"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


@dataclass(frozen=True)
class Limits:
    """What one client may ask for, and how long it may take to ask."""

    body: int = 262_144  # bytes of a request's body
    prompt: int = 0  # tokens of a prompt; 0: what the model's context holds
    tokens: int = 1024  # tokens of an answer
    connections: int = 4000  # open at once; beyond, the one that has waited longest without a request is closed
    arrival: float = 20.0  # seconds within which a request must be there whole
    idle: float = 5.0  # seconds that a connection may rest between two requests

    def check(self) -> Limits:
        """Itself, or ValueError for values without a meaning."""
        for name, value in vars(self).items():
            least = 0 if name == "prompt" else 1
            if not value >= least:
                raise ValueError(f"the limit {name} is at least {least}; got {value}. Leave it out for the default.")
        return self


@dataclass(frozen=True)
class Asked:
    """A request, checked but for the length of its prompt."""

    model: str
    prompt: str | list[int]
    messages: list[dict[str, str]]  # in place of a prompt
    max_tokens: int
    sampling: Sampling
    seed: int | None
    stop: tuple[str, ...]
    stream: bool
    include_usage: bool

    def ids(self, tokenizer: Tokenizer) -> list[int]:
        """The prompt's tokens, as `generate.stream_text` makes them. ApiError for messages in a wrong order."""
        if not self.messages:
            return tokenizer.encode(self.prompt, bos=True) if isinstance(self.prompt, str) else self.prompt
        try:
            return tokenizer.chat(self.messages, add_generation_prompt=True)
        except ValueError as error:
            raise ApiError(str(error), "messages") from error


def read(body: bytes, kind: str, limits: Limits) -> Asked:
    """A body of the `kind` "completion" or "chat". ApiError says what is wrong with it."""
    given = {name: value for name, value in _parsed(body).items() if value is not None}
    _refuse_unknown(given, kind)
    chat = kind == "chat"
    stream = _flag(given, "stream")
    return Asked(
        model=_model(given),
        prompt="" if chat else _prompt(given),
        messages=_messages(given) if chat else [],
        max_tokens=_max_tokens(given, limits.tokens, limits.tokens if chat else min(16, limits.tokens)),
        sampling=Sampling(
            _number(given, "temperature", 0, 2, 1.0),
            _number(given, "top_p", 0, 1, 1.0),
            _number(given, "frequency_penalty", -2, 2, 0.0),
        ),
        seed=_whole(given, "seed", -(2**63), 2**63 - 1),
        stop=_stop(given),
        stream=stream,
        include_usage=_include_usage(given, stream),
    )


def _parsed(body: bytes) -> dict[str, Any]:
    try:
        found = json.loads(body.decode("utf-8"), parse_constant=_no_constant)
        json.dumps(found, ensure_ascii=False).encode("utf-8")  # half of a surrogate pair is no text
    except (ValueError, RecursionError) as error:
        said = str(error)[:100]
        raise ApiError(
            f"the body must be JSON in UTF-8; it cannot be read ({said}). Check it with a JSON tool."
        ) from None
    if not isinstance(found, dict):
        raise ApiError(f'the body must be a JSON object; got {_shown(found)}. Send {{"model": .., ..}}.')
    return found


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def _refuse_unknown(given: dict[str, Any], kind: str) -> None:
    for name, value in given.items():
        if name in SERVED[kind] or name in HARMLESS:
            continue
        if name not in NEUTRAL:
            known = ", ".join(SERVED[kind])
            raise ApiError(
                f"{_shown(name)} is no parameter that is served here. Leave it out; there are {known}.", name
            )
        if not any(type(value) is type(fit) and value == fit for fit in NEUTRAL[name]):
            fits = " or ".join(json.dumps(fit) for fit in NEUTRAL[name])
            raise ApiError(f"{name} can only be {fits} here; got {_shown(value)}. Leave it out.", name)


def _model(given: dict[str, Any]) -> str:
    name = given.get("model")
    if not isinstance(name, str):
        raise ApiError(f"model is the name of a model; got {_shown(name)}. GET /v1/models lists them.", "model")
    return name


def _prompt(given: dict[str, Any]) -> str | list[int]:
    prompt = given.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str | list):
        prompt = prompt[0]  # a list of one prompt
    if isinstance(prompt, str) or (isinstance(prompt, list) and prompt and all(map(_is_whole, prompt))):
        return prompt
    rule = "prompt is one text or one list of token ids, not empty"
    raise ApiError(f"{rule}; got {_shown(prompt)}. Send several prompts as several requests.", "prompt")


def _messages(given: dict[str, Any]) -> list[dict[str, str]]:
    messages = given.get("messages")
    if not isinstance(messages, list) or not messages:
        rule = "messages is a list of at least one message"
        raise ApiError(f'{rule}; got {_shown(messages)}. Send [{{"role": "user", "content": ".."}}].', "messages")
    return [_message(message, f"messages[{i}]") for i, message in enumerate(messages)]


def _message(message: Any, where: str) -> dict[str, str]:
    if not isinstance(message, dict):
        raise ApiError(f"a message is an object with role and content; got {_shown(message)}. Mend it.", where)
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        raise ApiError(f"a role is one of {', '.join(ROLES)}; got {_shown(role)}. Use one.", f"{where}.role")
    for name in message.keys() - {"role", "content", "name"}:
        if message[name] is not None:
            raise ApiError(
                f"a message has role, content and name; got {_shown(name)}. Leave it out.", f"{where}.{name}"
            )
    if isinstance(content, list) and content:
        content = "".join(_part(part, f"{where}.content[{i}]") for i, part in enumerate(content))
    if not isinstance(content, str):
        raise ApiError(f"content is a text, or parts of text; got {_shown(content)}. Mend it.", f"{where}.content")
    return {"role": role, "content": content}


def _part(part: Any, where: str) -> str:
    if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
        raise ApiError(f'a part is {{"type": "text", "text": ".."}}; got {_shown(part)}. Only text is read.', where)
    return part["text"]


def _max_tokens(given: dict[str, Any], most: int, default: int) -> int:
    names = [name for name in ("max_completion_tokens", "max_tokens") if name in given]
    if len(names) == 2:
        raise ApiError("max_tokens and max_completion_tokens say the same; got both. Send one of them.", names[0])
    found = _whole(given, names[0], 1, most) if names else None
    return default if found is None else found


def _stop(given: dict[str, Any]) -> tuple[str, ...]:
    found = given.get("stop", [])
    stops = [found] if isinstance(found, str) else found
    fine = isinstance(stops, list) and all(isinstance(s, str) and 0 < len(s) <= LONGEST_STOP for s in stops)
    if not fine or len(stops) > MOST_STOPS:
        rule = f"stop is a text or a list of at most {MOST_STOPS} texts, each of 1 to {LONGEST_STOP} characters"
        raise ApiError(f"{rule}; got {_shown(found)}. Leave out what does not fit.", "stop")
    return tuple(stops)


def _include_usage(given: dict[str, Any], stream: bool) -> bool:
    options = given.get("stream_options", {})
    if not isinstance(options, dict) or options.keys() - {"include_usage"}:
        rule = 'stream_options is {"include_usage": true} or left out'
        raise ApiError(f"{rule}; got {_shown(options)}. Mend it.", "stream_options")
    if options and not stream:
        raise ApiError("stream_options goes with stream = true; stream is off. Leave one out.", "stream_options")
    return _flag(options, "include_usage", "stream_options.include_usage")


def _flag(given: dict[str, Any], name: str, param: str = "") -> bool:
    value = given.get(name, False)
    if not isinstance(value, bool):
        raise ApiError(f"{name} is true or false; got {_shown(value)}. Mend it.", param or name)
    return value


def _number(given: dict[str, Any], name: str, low: float, high: float, default: float) -> float:
    value = given.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ApiError(f"{name} is a number from {low:g} to {high:g}; got {_shown(value)}. {default:g} is usual.", name)
    return float(value)


def _whole(given: dict[str, Any], name: str, low: int, high: int) -> int | None:
    value = given.get(name)
    if value is None:
        return None
    if not _is_whole(value) or not low <= value <= high:
        raise ApiError(
            f"{name} is a whole number from {low} to {high}; got {_shown(value)}. Choose one of these.", name
        )
    return value


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _shown(value: Any) -> str:
    """A value of a stranger's, cut short."""
    try:
        text = "nothing" if value is None else json.dumps(value, ensure_ascii=False)
    except RecursionError:
        text = "something deeply nested"
    return text if len(text) <= 60 else f"{text[:57]}..."
