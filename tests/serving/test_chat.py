"""Clients of chat completions, after a change of their base URL."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import pytest

from captioner.captioner import Captioner

import toys
from served import Served, png, serving

openai = pytest.importorskip("openai")


@pytest.fixture(scope="module")
def model() -> Captioner:
    return toys.captioner()


@pytest.fixture(scope="module")
def served(model: Captioner) -> Iterator[Served]:
    with serving({"toy": model, "other": toys.captioner(seed=1)}) as running:
        yield running


@pytest.fixture(scope="module")
def client(served: Served) -> Iterator[Any]:
    address = f"http://127.0.0.1:{served.port}/v1"
    with openai.OpenAI(base_url=address, api_key="none", max_retries=0) as made:
        yield made


def data_url(content: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


def messages(*urls: str) -> list[dict[str, object]]:
    parts: list[dict[str, object]] = [{"type": "text", "text": "What is in this picture?"}]
    parts += [{"type": "image_url", "image_url": {"url": url, "detail": "low"}} for url in urls]
    return [{"role": "system", "content": "Be brief."}, {"role": "user", "content": parts}]


PICTURE = messages(data_url(png()))


def test_the_caption_is_the_answer(client: Any, model: Captioner) -> None:
    answer = client.chat.completions.create(
        model="gpt-4o-mini", messages=PICTURE, max_tokens=300, temperature=0, top_p=1, seed=3
    )
    [choice] = answer.choices
    assert choice.message.role == "assistant"
    assert choice.message.content == model.caption(png())
    assert choice.finish_reason in ("stop", "length")
    assert choice.logprobs is None
    assert answer.model == "toy"
    [caption] = model.search(model.encode([png()]), words=True)[0]
    assert answer.usage.completion_tokens == len(caption.words)
    assert answer.usage.total_tokens == answer.usage.completion_tokens


def test_the_settings(client: Any, served: Served, model: Captioner) -> None:
    answer = client.chat.completions.create(
        model="toy", messages=PICTURE, n=3, logprobs=True, top_logprobs=2,
        extra_query={"start": "the", "style": "sentence"},
    )  # fmt: skip
    options = model.settings(n_best=3, start="the")
    [expected] = model.search(model.encode([png()]), options, n_best=3, alternatives=2)
    assert len(answer.choices) == 3
    for choice, caption in zip(answer.choices, expected, strict=True):
        assert choice.message.content.lower().rstrip(".") == caption.text
        tokens = choice.logprobs.content
        assert sum(token.logprob for token in tokens) == pytest.approx(caption.log_prob, abs=1e-4)
        assert all(len(token.top_logprobs) == 2 for token in tokens)
    other = client.chat.completions.create(model="other", messages=PICTURE)
    assert other.model == "other"
    short = client.chat.completions.create(model="toy", messages=PICTURE, max_completion_tokens=1)
    assert len(short.choices[0].message.content.split()) <= 1


def test_log_probabilities_alone(client: Any) -> None:
    answer = client.chat.completions.create(model="toy", messages=PICTURE, logprobs=True)
    assert all(token.top_logprobs == [] for token in answer.choices[0].logprobs.content)


def test_a_sampled_caption(client: Any, model: Captioner) -> None:
    answer = client.chat.completions.create(
        model="toy", messages=PICTURE, seed=5, extra_query={"search": "sample"}
    )
    assert answer.choices[0].message.content == model.caption(png(), search="sample", seed=5)


def test_the_stream(client: Any, model: Captioner) -> None:
    chunks = list(
        client.chat.completions.create(
            model="toy", messages=PICTURE, n=2, stream=True, stream_options={"include_usage": True}
        )
    )
    texts = {0: "", 1: ""}
    reasons = {}
    for chunk in chunks[:-1]:
        [choice] = chunk.choices
        texts[choice.index] += choice.delta.content or ""
        reasons[choice.index] = choice.finish_reason
    assert texts[0] == model.caption(png(), beam_size=3)
    assert texts[1]
    assert set(reasons.values()) <= {"stop", "length"}
    assert chunks[-1].usage.completion_tokens > 0


def test_the_last_picture_counts(client: Any, model: Captioner) -> None:
    later = messages(data_url(png(colour=(40, 60, 220))))
    talk = [*PICTURE, {"role": "assistant", "content": "red"}, *later]
    talk += [{"role": "user", "content": "And now?"}]
    answer = client.chat.completions.create(model="toy", messages=talk)
    assert answer.choices[0].message.content == model.caption(png(colour=(40, 60, 220)))


def test_the_models(client: Any) -> None:
    assert [each.id for each in client.models.list()] == ["toy", "other"]


@pytest.mark.parametrize(
    ("talk", "message"),
    [
        ([{"role": "user", "content": "Hello"}], "messages: no picture"),
        (messages(), "messages: no picture"),
        (messages("http://127.0.0.1:1/a.png"), "no URL is fetched"),
        (messages("file:///etc/passwd"), "no URL is fetched"),
        (messages("data:image/png,xyz"), "must be as data:image/jpeg;base64,..."),
        (messages("data:image/png;base64,!!!"), "damaged base64"),
        (messages(data_url(b"")), "image: empty"),
        (messages(data_url(png()), data_url(png())), "several pictures in one message"),
        ("no list", "messages: must be a list"),
        ([1], "messages: must be a list of objects"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": 3}]}], "must hold a url"),
    ],
)
def test_a_wrong_message_is_one_line(client: Any, talk: Any, message: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="toy", messages=talk)
    assert message in caught.value.body["message"]
    assert "\n" not in caught.value.body["message"]
    assert caught.value.body["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n": 0}, "n: must be a whole number from 1 to 50"),
        ({"n": 51}, "n: must be a whole number from 1 to 50"),
        ({"logprobs": "yes"}, "logprobs: must be true or false, given 'yes'"),
        ({"stream": 1}, "stream: must be true or false, given 1"),
        ({"stream_options": []}, "stream_options: must be an object"),
        ({"stream_options": {"include_usage": 2}}, "stream_options.include_usage: must be true"),
        ({"model": ["toy"]}, "model: must be a name"),
        ({"n": "2"}, "n: must be a whole number"),
        ({"n": True}, "n: must be a whole number"),
        ({"max_tokens": -1}, "max_tokens: must be a whole number"),
        ({"logprobs": True, "top_logprobs": 51}, "top_logprobs: must be a whole number"),
    ],
)
def test_a_wrong_setting_is_one_line(client: Any, settings: Any, message: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="toy", messages=PICTURE, extra_body=settings)
    assert message in caught.value.body["message"]


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff", b"[" * 10**6, b'{"messages": null}'])
def test_a_wrong_body_is_one_line(served: Served, body: bytes) -> None:
    answer = served.client.post("/v1/chat/completions", content=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"]
    assert "\n" not in answer.json()["error"]["message"]


def test_no_address_is_called(client: Any, served: Served) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as trap:
        trap.settimeout(0.2)
        address = f"http://127.0.0.1:{trap.getsockname()[1]}/a.png"
        with pytest.raises(openai.BadRequestError):
            client.chat.completions.create(model="toy", messages=messages(address))
        body = json.dumps({"image": address}).encode()
        assert served.client.post("/v1/caption", content=body).status_code == 415
        assert served.client.post(f"/v1/caption?image={address}").status_code == 400
        with pytest.raises(TimeoutError):
            trap.accept()
