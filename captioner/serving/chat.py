"""The chat-completions form of other servers: a picture as data URL, the caption as answer.

The text of the messages is not read: an RNN that writes captions follows no instructions.
"""

from __future__ import annotations

import base64
import binascii
import json
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import cast

from captioner.captioner import Captioner
from captioner.captioning.wording import Wording
from captioner.serving.answer import END, JSON, Captioned
from captioner.serving.refusal import RefusedError
from captioner.serving.wish import MOST, Wish, read_wish
from captioner.system.foreign import excerpt
from captioner.text.words import Caption, Word

ENDED, CUT = "stop", "length"


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A request, read: what to do, the picture, and how to answer."""

    wish: Wish
    content: bytes
    choices: int | None  # of each token, with log-probabilities; None: without
    stream: bool
    usage: bool  # in the last piece of a stream


def read_chat(
    body: bytes, query: Iterable[tuple[str, str]], models: Mapping[str, Captioner]
) -> ChatRequest:
    """Read the body of a request; the query may steer the search, as for `/v1/caption`.

    A model that is not served stands for the default, as clients often have a fixed name.

    Raises:
        RefusedError: if it is no such request, or holds no picture.
        ConfigError: if the search settings do not fit the model.
    """
    try:
        given = json.loads(body)
    except (ValueError, RecursionError):
        raise RefusedError(400, "body: not JSON") from None
    if not isinstance(given, dict):
        raise RefusedError(400, "body: must be a JSON object")
    content = _picture(_messages(given))
    pairs = [(name, value) for name, value in query if name != "model"]
    if not isinstance(given.get("model", ""), str | None):
        raise RefusedError(400, "model: must be a name")
    if given.get("model") in [*models]:
        pairs.append(("model", given["model"]))
    for own, name, least, most in (("n_best", "n", 1, MOST), ("seed", "seed", 0, 2**31)):
        if given.get(name) is not None:
            value = _number(given, name, least=least, most=most)
            if own != "seed" or dict(pairs).get("search") == "sample":  # a beam draws nothing
                pairs.append((own, str(value)))
    log_probs, stream = _flag(given, "logprobs"), _flag(given, "stream")
    choices = _number(given, "top_logprobs", least=0, most=MOST) if log_probs else 0
    wish = read_wish(pairs, models)
    # Always with words: `usage` counts them.
    wish = _shortened(given, replace(wish, words=max(choices, 1, wish.words)))
    return ChatRequest(wish, content, choices if log_probs else None, stream, _usage_asked(given))


def _messages(given: JSON) -> list[JSON]:
    messages = given.get("messages")
    if not isinstance(messages, list) or not all(isinstance(each, dict) for each in messages):
        raise RefusedError(400, "messages: must be a list of objects")
    return cast(list[JSON], messages)


def _picture(messages: list[JSON]) -> bytes:
    """Return the picture of the last message that has one."""
    for message in reversed(messages):
        parts = message.get("content")
        urls = [_url_of(part) for part in parts if _is_image(part)] if type(parts) is list else []
        if len(urls) > 1:
            raise RefusedError(400, "messages: several pictures in one message; send one")
        if urls:
            return _decoded(urls[0])
    raise RefusedError(400, "messages: no picture; send a part of type image_url with a data URL")


def _is_image(part: object) -> bool:
    return isinstance(part, dict) and part.get("type") in ("image_url", "input_image")


def _url_of(part: JSON) -> str:
    url = part.get("image_url")
    url = url.get("url") if isinstance(url, dict) else url
    if not isinstance(url, str):
        raise RefusedError(400, "image_url: must hold a url")
    return url


def _decoded(url: str) -> bytes:
    head, comma, data = url.partition(",")
    if not head[:5].lower() == "data:":
        raise RefusedError(
            400, f"image_url: must be a data URL, given {excerpt(url, 60)}; no URL is fetched"
        )
    if not comma or not head.lower().endswith(";base64"):
        raise RefusedError(400, "image_url: must be as data:image/jpeg;base64,...")
    try:
        return base64.b64decode("".join(data.split()), validate=True)
    except (binascii.Error, ValueError):
        raise RefusedError(400, "image_url: damaged base64") from None


def _number(given: JSON, name: str, *, least: int, most: int = 2**31) -> int:
    value = given.get(name)
    value = least if value is None else value
    if type(value) is not int or not least <= value <= most:
        raise RefusedError(
            400,
            f"{name}: must be a whole number from {least} to {most:,}, given {excerpt(value, 60)}",
        )
    return value


def _flag(given: JSON, name: str, what: str = "") -> bool:
    value = given.get(name)
    if not isinstance(value, bool | None):
        raise RefusedError(400, f"{what}{name}: must be true or false, given {excerpt(value, 60)}")
    return bool(value)


def _usage_asked(given: JSON) -> bool:
    options = given.get("stream_options")
    if not isinstance(options, dict | None):
        raise RefusedError(400, "stream_options: must be an object")
    return _flag(options or {}, "include_usage", "stream_options.")


def _shortened(given: JSON, wish: Wish) -> Wish:
    """Return a wish for captions of at most `max_tokens`, if that is less than the model's own."""
    name = "max_tokens" if given.get("max_completion_tokens") is None else "max_completion_tokens"
    if given.get(name) is None:
        return wish
    longest = min(_number(given, name, least=1), wish.options.max_length)
    if longest < wish.options.min_length:
        raise RefusedError(400, f"{name}: must be at least min_length, {wish.options.min_length}")
    return replace(wish, options=wish.options.model_copy(update={"max_length": longest}))


def to_completion(asked: ChatRequest, found: Captioned) -> JSON:
    """Return the answer in one piece."""
    choices: list[JSON] = []
    for index, caption in enumerate(found.captions):
        message: JSON = {"role": "assistant", "content": _text(asked, caption), "refusal": None}
        choices.append(_choice(asked, index, caption) | {"message": message})
    return _head("chat.completion", asked) | {"choices": choices, "usage": _usage(found)}


def to_stream(asked: ChatRequest, found: Captioned) -> Iterator[str]:
    """Yield the answer as events."""
    head = _head("chat.completion.chunk", asked)
    for index, caption in enumerate(found.captions):
        delta: JSON = {"role": "assistant", "content": _text(asked, caption)}
        choice = _choice(asked, index, caption) | {"delta": delta, "finish_reason": None}
        yield _event(head | {"choices": [choice]})
        last: JSON = {"index": index, "delta": {}, "finish_reason": _reason(caption)}
        yield _event(head | {"choices": [last]})
    if asked.usage:
        yield _event(head | {"choices": [], "usage": _usage(found)})
    yield "data: [DONE]\n\n"


def chat_error(refusal: RefusedError) -> JSON:
    """Return an error in the form that clients of chat completions read."""
    kind = "invalid_request_error" if refusal.status < 500 else "server_error"
    return {"error": {"message": refusal.message, "type": kind, "param": None, "code": None}}


def _event(content: JSON) -> str:
    return f"data: {json.dumps(content)}\n\n"


def _head(kind: str, asked: ChatRequest) -> JSON:
    created = int(time.time())
    name = f"chatcmpl-{uuid.uuid4().hex}"
    return {"id": name, "object": kind, "created": created, "model": asked.wish.model}


def _text(asked: ChatRequest, caption: Caption) -> str:
    return Wording(asked.wish.style)(caption.text)


def _reason(caption: Caption) -> str:
    return ENDED if caption.finished else CUT


def _choice(asked: ChatRequest, index: int, caption: Caption) -> JSON:
    log_probs = None
    if asked.choices is not None:
        tokens = [_token(word, asked.choices) for word in caption.words]
        log_probs = {"content": tokens, "refusal": None}
    return {"index": index, "finish_reason": _reason(caption), "logprobs": log_probs}


def _token(word: Word, choices: int) -> JSON:
    others = [_one(*choice) for choice in word.alternatives[:choices]]
    return _one(word.text, word.log_prob) | {"top_logprobs": others}


def _one(text: str, log_prob: float) -> JSON:
    token = "" if text == END else text
    return {"token": token, "logprob": log_prob, "bytes": list(token.encode())}


def _usage(found: Captioned) -> JSON:
    """Count the tokens of the model, the end token among them."""
    written = sum(len(each.words) for each in found.captions)
    return {"prompt_tokens": 0, "completion_tokens": written, "total_tokens": written}
