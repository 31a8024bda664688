"""The HTTP API: the captions are those of the model, and an error is one line."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import httpx
import pytest
import torch

from captioner import captioner as captioner_module
from captioner.captioner import Captioner
from captioner.captioning.wording import sentence
from captioner.cli.serve import command
from captioner.errors import ModelError
from captioner.page.assets import page_assets
from captioner.serving import queue
from captioner.serving.limits import Limits
from captioner.text.words import Caption

import toys
from served import Served, png, serving


@pytest.fixture(scope="module")
def model() -> Captioner:
    return toys.captioner()


@pytest.fixture(scope="module")
def attentive() -> Captioner:
    return toys.captioner(toys.encoder(grid=2), attention="spatial")


@pytest.fixture(scope="module")
def served(model: Captioner, attentive: Captioner) -> Iterator[Served]:
    with serving({"toy": model, "looks": attentive}) as running:
        yield running


def best(captioner: Captioner, content: bytes, **settings: object) -> list[Caption]:
    n_best = int(settings.pop("n_best", 1))  # type: ignore[call-overload]
    options = captioner.settings(n_best=n_best, **settings)  # type: ignore[arg-type]
    features = captioner.encode([content])
    return captioner.search(features, options, n_best=n_best, alternatives=3)[0]


def error_of(answer: httpx.Response) -> str:
    assert answer.headers["content-type"] == "application/json"
    assert set(answer.json()) == {"error"}
    error: str = answer.json()["error"]
    assert error and "\n" not in error and "Traceback" not in error
    return error


def test_a_picture_has_the_caption_that_python_gives(served: Served, model: Captioner) -> None:
    answer = served.client.post("/v1/caption", content=png()).json()
    expected = best(model, png())[0]
    assert answer["caption"] == expected.text
    assert answer["log_prob"] == pytest.approx(expected.log_prob, abs=1e-4)
    assert answer["score"] == pytest.approx(expected.score, abs=1e-4)
    assert answer["model"] == "toy"
    assert answer["status"] == "ok"
    assert answer["image"] == {"width": 40, "height": 30, "seen": [0.125, 0, 0.875, 1]}
    assert "words" not in answer
    form = served.client.post("/v1/caption", files={"image": ("a.png", png(), "image/png")})
    assert form.json() == answer


def test_the_search_is_steered(served: Served, model: Captioner) -> None:
    query = {"start": "the", "forbid": ["a", "red"], "beam_size": 2, "min_length": 4}
    answer = served.client.post("/v1/caption", params=query, content=png()).json()
    assert answer["caption"] == best(model, png(), **query)[0].text
    assert answer["caption"].startswith("the")
    assert not {"a", "red"} & set(answer["caption"].split())


def test_several_captions_and_words(served: Served, model: Captioner) -> None:
    query = {"n_best": 4, "words": 3}
    answer = served.client.post("/v1/caption", params=query, content=png()).json()
    expected = best(model, png(), n_best=4)
    assert [each["caption"] for each in answer["n_best"]] == [each.text for each in expected]
    assert answer["n_best"][0]["caption"] == answer["caption"]
    for given, caption in zip(answer["n_best"], expected, strict=True):
        assert len(given["words"]) == len(caption.words)
        total = sum(word["log_prob"] for word in given["words"])
        assert total == pytest.approx(given["log_prob"], abs=1e-4)
        assert all(len(word["alternatives"]) == 3 for word in given["words"])
        ends = [word.get("end", False) for word in given["words"]]
        assert ends == [word.text == "<eos>" for word in caption.words]
        assert all((word["text"] == "") == word.get("end", False) for word in given["words"])
    assert answer["words"] == answer["n_best"][0]["words"]


def test_attention_maps(served: Served, attentive: Captioner) -> None:
    query = {"model": "looks", "maps": "true"}
    answer = served.client.post("/v1/caption", params=query, content=png()).json()
    features = attentive.encode([png()])
    expected = attentive.search(features, maps=True)[0][0]
    assert answer["map_source"] == "attention"
    assert len(answer["words"]) == len(expected.words)
    for given, word in zip(answer["words"], expected.words, strict=True):
        assert word.attention
        assert given["sentinel"] == pytest.approx(word.attention.sentinel, abs=1e-4)
        for row, places in zip(given["map"], word.attention.places, strict=True):
            assert row == pytest.approx(places, abs=1e-4)


def test_gradient_maps(served: Served, attentive: Captioner) -> None:
    query = {"model": "looks", "maps": "gradient", "words": 1}
    answer = served.client.post("/v1/caption", params=query, content=png()).json()
    expected = attentive.explain(png())
    assert answer["map_source"] == "gradient"
    assert answer["caption"] == expected.caption.text
    maps = torch.tensor([word["map"] for word in answer["words"]])
    assert torch.allclose(maps, expected.maps, atol=1e-4)
    assert maps.abs().max() > 1e-3
    assert not any("sentinel" in word for word in answer["words"])


@pytest.mark.parametrize("maps", ["attention", "gradient"])
def test_a_picture_is_decoded_encoded_and_searched_once(
    served: Served, attentive: Captioner, monkeypatch: pytest.MonkeyPatch, maps: str
) -> None:
    calls: list[str] = []

    def watched(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **named: Any) -> Any:
            calls.append(name)
            return function(*given, **named)

        return call

    for module, name in ((queue, "read_image"), (captioner_module, "beam_search")):
        monkeypatch.setattr(module, name, watched(name, getattr(module, name)))
    [seeing] = [served.queue.encoders["looks"]]
    monkeypatch.setattr(seeing, "function", watched("see", seeing.function))
    monkeypatch.setattr(attentive.encoder, "see", watched("see", attentive.encoder.see))
    query = {"model": "looks", "maps": maps, "trace": "true", "words": "2"}
    answer = served.client.post("/v1/caption", params=query, content=png()).json()
    assert answer["trace"] and answer["words"][0]["map"]
    assert sorted(calls) == ["beam_search", "read_image", "see"]


def test_a_sampled_caption_with_its_trace_is_that_of_the_seed(served: Served) -> None:
    query = {"search": "sample", "seed": "7"}
    plain = served.client.post("/v1/caption", params=query, content=png()).json()
    traced = served.client.post(
        "/v1/caption", params=query | {"trace": "true"}, content=png()
    ).json()
    assert {key: value for key, value in traced.items() if key != "trace"} == plain


def test_maps_of_other_pieces_than_the_words_are_left_out(
    served: Served, model: Captioner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model, "map_words", lambda *_: torch.zeros(99, 2, 2))
    answer = served.client.post("/v1/caption?maps=true", content=png()).json()
    assert answer["words"] and not any("map" in word for word in answer["words"])


def test_a_model_without_maps_says_so(
    served: Served, model: Captioner, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = served.client.post("/v1/caption?maps=true", content=png())
    assert answer.json()["map_source"] == "gradient"
    answer = served.client.post("/v1/caption?maps=attention", content=png())
    assert answer.status_code == 400
    assert error_of(answer).startswith("maps: the model has no attention")

    def map_words(*_: object) -> None:
        raise ModelError("the CNN sees a single place")

    monkeypatch.setattr(model, "map_words", map_words)
    answer = served.client.post("/v1/caption?maps=true", content=png())
    assert answer.status_code == 422
    assert error_of(answer) == "the CNN sees a single place"


def test_a_sampled_caption_depends_on_the_seed_alone(served: Served, model: Captioner) -> None:
    query = {"search": "sample", "seed": "7"}
    files = [("image", (f"{i}.png", png(), "image/png")) for i in range(4)]
    alone = served.client.post("/v1/caption", params=query, content=png()).json()["caption"]
    lines = served.client.post("/v1/captions", params=query, files=files).text.splitlines()
    assert [json.loads(line)["caption"] for line in lines] == [alone] * 4
    assert alone == best(model, png(), search="sample", seed=7)[0].text


def test_the_style(served: Served) -> None:
    plain = served.client.post("/v1/caption", content=png()).json()["caption"]
    styled = served.client.post("/v1/caption?style=sentence", content=png()).json()["caption"]
    assert styled == sentence(plain) != plain


def test_several_pictures_come_as_lines_and_a_bad_one_is_a_line(served: Served) -> None:
    pictures = [png(colour=colour) for colour in toys.COLOURS.values()]
    files = [("image", (f"{i}.png", content, "image/png")) for i, content in enumerate(pictures)]
    files[2] = ("image", ("bäd\n.png", b"no picture", "image/png"))
    answer = served.client.post("/v1/captions", files=files)
    assert answer.headers["content-type"] == "application/x-ndjson"
    lines = sorted(map(json.loads, answer.text.splitlines()), key=lambda line: line["index"])
    assert [line["index"] for line in lines] == list(range(len(pictures)))
    assert [line["status"] for line in lines] == [
        "error" if number == 2 else "ok" for number in range(len(pictures))
    ]
    assert lines[2]["error"].startswith("image: not an image")
    for line, content in zip(lines, pictures, strict=True):
        if line["status"] == "ok":
            alone = served.client.post("/v1/caption", content=content).json()
            assert line["log_prob"] == pytest.approx(alone["log_prob"], abs=1e-4)
            assert line["caption"] == alone["caption"]
            assert set(line) == set(alone) | {"index", "file_name"}


def test_a_blank_picture_says_so(served: Served) -> None:
    blank = png(colour=(120, 120, 120))
    assert served.client.post("/v1/caption", content=blank).json()["status"] == "blank"


def test_the_models(served: Served, model: Captioner) -> None:
    models = served.client.get("/v1/models").json()["models"]
    assert [each["name"] for each in models] == ["toy", "looks"]
    assert [each["default"] for each in models] == [True, False]
    assert [each["attention"] for each in models] == [False, True]
    assert models[0]["cnns"] == ["squeezenet1_1"]
    assert models[0]["decoding"] == json.loads(model.decoding.model_dump_json())


@pytest.mark.parametrize(
    ("query", "status", "message"),
    [
        ("beam_size=0", 400, "beam_size: "),
        ("beam_size=51", 400, "beam_size: must be at most 50"),
        ("max_length=1000", 400, "max_length: must be at most 100"),
        ("beam=2", 400, "beam: no such setting (did you mean beam_size?)"),
        ("n_best=x", 400, "n_best: must be 1 to 50, given 'x'"),
        ("n_best=0", 400, "n_best: must be 1 to 50"),
        ("words=0000000000100", 400, "words: must be 0 to 50"),
        (f"words={'0' * 9}{'1' * 5000}", 400, "words: must be 0 to 50"),
        ("words=51", 400, "words: must be 0 to 50"),
        ("maps=perhaps", 400, "maps: must be true or false"),
        ("style=loud", 400, "style: must be plain or sentence"),
        ("model=other", 404, "model: no 'other'; served: toy, looks"),
        ("beam_size=1&beam_size=2", 400, "'beam_size': given more than once"),
        ("start=zebra", 400, "start: the model does not know zebra"),
        ("temperature=2", 400, "temperature: "),
        ("forbid=two+words", 400, "forbid: must be single words"),
    ],
)
def test_a_wrong_query_is_one_line(served: Served, query: str, status: int, message: str) -> None:
    answer = served.client.post(f"/v1/caption?{query}", content=png())
    assert answer.status_code == status
    assert error_of(answer).startswith(message)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/nix", 404), ("GET", "/v1/caption", 405), ("POST", "/healthz", 405),
     ("GET", "/page/../app.py", 404), ("GET", "/page/%2e%2e/assets.py", 404)],
)  # fmt: skip
def test_an_unknown_path_is_one_line(served: Served, method: str, path: str, status: int) -> None:
    answer = served.client.request(method, path)
    assert answer.status_code == status
    error_of(answer)


@pytest.mark.parametrize(
    ("files", "status", "message"),
    [
        ({"photo": ("a.png", b"x")}, 400, "body: a part named 'photo'"),
        ([("image", ("a", b"x")), ("image", ("b", b"x"))], 413, "body: more than 1 part"),
    ],
)
def test_a_wrong_form_is_one_line(served: Served, files: object, status: int, message: str) -> None:
    answer = served.client.post("/v1/caption", files=files)  # type: ignore[arg-type]
    assert answer.status_code == status
    assert error_of(answer).startswith(message)


def test_every_answer_forbids_foreign_and_inline_code(served: Served) -> None:
    for path in ("/", "/healthz", "/nix"):
        policy = served.client.get(path).headers["content-security-policy"]
        assert policy.startswith("default-src 'self'")
        assert "unsafe" not in policy and "http" not in policy and "*" not in policy


def test_the_page_is_served(served: Served) -> None:
    for path, asset in page_assets().items():
        answer = served.client.get(path)
        assert answer.content == asset.content
        assert answer.headers["content-type"] == asset.media_type


def test_the_log_holds_size_time_and_outcome_alone(served: Served) -> None:
    before = len(served.log)
    served.client.post("/v1/caption?start=a+red", content=png(), headers={"Secret": "secret"})
    served.client.get("/secret/path?query=secret")
    lines = served.log[before:]
    assert len(lines) == 2
    assert lines[0].startswith(f"POST /v1/caption 200, {len(png()):,} bytes, ")
    assert lines[1].startswith("GET other 404, 0 bytes, ")
    assert not any(word in line for line in lines for word in ("secret", "red", "start"))


def test_the_command_has_the_limits_of_python() -> None:
    given = command.make_context("serve", []).params
    assert {name: given[name] for name in asdict(Limits())} == asdict(Limits())
