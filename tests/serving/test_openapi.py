"""The OpenAPI file says what the server takes and answers."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import torch
import yaml
from starlette.routing import Route

from captioner.captioner import Captioner
from captioner.config import DecodingConfig
from captioner.decoder.neighbours import Neighbours, count_ngrams
from captioner.page.assets import page_assets
from captioner.serving.app import OPENAPI
from captioner.serving.limits import Limits
from captioner.serving.wish import OWN

import toys
from served import Served, png, serving

jsonschema = pytest.importorskip("jsonschema")
SPEC = yaml.safe_load(OPENAPI.read_text(encoding="utf-8"))
SCHEMAS = SPEC["components"]["schemas"]
POSTS = ("/v1/caption", "/v1/captions", "/v1/chat/completions")
GETS = ("/v1/models", "/metrics", "/healthz", "/openapi.yaml")
PARTS = {"AnswerFields", "LineFields"}  # of closed schemas
REQUESTS = {"Chat"}  # other fields are not read
# Of each parameter, queries that are answered.
QUERIES = {
    "model": ["model=looks"],
    "n_best": ["n_best=3", "n_best=2&words=2&trace=true"],
    "words": ["words=2", "words=0"],
    "maps": [
        *("maps=true", "maps=false", "maps=gradient", "model=looks&maps=attention"),
        *("model=looks&maps=true&words=1", "model=looks&maps=gradient&trace=true"),
    ],
    "trace": ["trace=true", "trace=false", "search=sample&trace=true&words=2"],
    "style": ["style=plain", "style=sentence&n_best=2&trace=true"],
    "search": ["search=beam", "search=sample&n_best=2"],
    "beam_size": ["beam_size=2&trace=true"],
    "length_penalty": ["length_penalty=0.5"],
    "max_length": ["max_length=2&words=1&trace=true"],
    "min_length": ["min_length=3"],
    "start": ["start=a+red&words=1&maps=true&trace=true"],
    "forbid": ["forbid=a", "forbid=a&forbid=red"],
    "no_repeat_ngram_size": ["no_repeat_ngram_size=2"],
    "repeat_penalty": ["repeat_penalty=1.5"],
    "neighbours": ["neighbours=2.5&trace=true"],
    "precision": [f"precision={name}" for name in ("auto", "fp32", "bf16", "fp16")],
    "temperature": ["search=sample&temperature=0.5"],
    "top_k": ["search=sample&top_k=3"],
    "top_p": ["search=sample&top_p=0.5"],
    "seed": ["search=sample&seed=7"],
}
BLANK = png(colour=(120, 120, 120))


def with_neighbours() -> Captioner:
    model = toys.captioner()
    captions = torch.tensor([model.vocabulary.encode(["a", "red", "square"])] * 4)
    hidden = model.decoder.init_hidden(model.encode([png()]))[:1].detach()
    states = torch.nn.functional.normalize(hidden.transpose(0, 1).flatten(1)).repeat(4, 1)
    model.neighbours = Neighbours(
        states, **count_ngrams(captions, torch.full((4,), 3), torch.arange(4))
    )
    return model


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    looks = toys.captioner(toys.encoder(grid=2), attention="spatial")
    with serving({"toy": with_neighbours(), "looks": looks}) as running:
        yield running


def check(name: str, value: Any) -> None:
    """Check a value against a schema of the file."""
    schema = {"$ref": f"#/components/schemas/{name}", "components": SPEC["components"]}
    jsonschema.Draft202012Validator(schema).validate(value)


def checked(answer: httpx.Response) -> list[Any]:
    """Check an answer against its operation in the file; return its JSON values."""
    item = SPEC["paths"][answer.request.url.path]
    operation = item[answer.request.method.lower()]
    expected = operation["responses"].get(str(answer.status_code))
    expected = expected or operation["responses"]["default"]
    if name := expected.get("$ref"):
        expected = SPEC["components"]["responses"][name.rpartition("/")[2]]
    kind = answer.headers["content-type"].partition(";")[0]
    schema = expected["content"][kind]["schema"]  # KeyError: a kind that the file does not name
    if answer.status_code == 503:
        assert int(answer.headers["retry-after"]) > 0
    if kind == "text/event-stream":
        *events, last, end = answer.text.split("\n\n")
        assert (last, end) == ("data: [DONE]", "")
        values = [json.loads(event.removeprefix("data: ")) for event in events]
        schema = {"$ref": "#/components/schemas/Chunk"}
    elif kind == "application/x-ndjson":
        values = [json.loads(line) for line in answer.text.splitlines()]
    else:
        values = [answer.json() if kind == "application/json" else answer.text]
    assert values
    for value in values:
        whole = schema | {"components": SPEC["components"]}
        jsonschema.Draft202012Validator(whole).validate(value)
    return values


def chat(content: bytes = png(), kind: str = "image_url", **fields: Any) -> dict[str, Any]:
    url = f"data:image/png;base64,{base64.b64encode(content).decode()}"
    part = {"type": kind, "image_url": url if kind == "input_image" else {"url": url}}
    return {"model": "gpt", "messages": [{"role": "user", "content": [part]}], **fields}


def form(*contents: bytes) -> list[tuple[str, tuple[str, bytes, str]]]:
    return [("image", (f"{i}.png", each, "image/png")) for i, each in enumerate(contents)]


def test_it_names_every_route(served: Served) -> None:
    routes = {
        (route.path, method.lower())
        for route in served.app.routes
        if isinstance(route, Route)
        for method in (route.methods or set()) - {"HEAD"}
    }
    own = {route for route in routes if route[0] not in page_assets()}
    assert {(path, method) for path, item in SPEC["paths"].items() for method in item} == own
    assert own == {(path, "post") for path in POSTS} | {(path, "get") for path in GETS}
    assert served.client.get("/openapi.yaml").content == OPENAPI.read_bytes()


@pytest.mark.parametrize("path", POSTS)
def test_it_names_every_query(path: str) -> None:
    parameters = {
        each["name"]: each["schema"] for each in SPEC["paths"][path]["post"]["parameters"]
    }
    assert sorted(parameters) == sorted([*OWN, *DecodingConfig.model_fields]) == sorted(QUERIES)
    own = DecodingConfig.model_json_schema()["properties"]
    for name, schema in parameters.items():
        given = {key: value for key, value in schema.items() if key not in ("default", "type")}
        wanted = own.get(name, given)
        for key in ("minimum", "maximum", "maxLength", "maxItems", "enum", "items"):
            if (name, key) not in (("beam_size", "maximum"), ("max_length", "maximum")):
                assert given.get(key) == wanted.get(key), (name, key)
    decoding = SCHEMAS["Decoding"]
    assert sorted(decoding["required"]) == sorted(decoding["properties"])
    assert sorted(decoding["properties"]) == sorted(DecodingConfig.model_fields)


def test_what_it_does_not_name_is_refused(served: Served) -> None:
    for path, body in zip(POSTS, (None, form(png()), chat()), strict=True):
        given = {"files": body} if path == POSTS[1] else {"json": body} if body else {}
        answer = served.client.post(f"{path}?maximum=3", **(given or {"content": png()}))
        assert answer.status_code == 400 and "maximum: no such setting" in answer.text
        checked(answer)


@pytest.mark.parametrize("name", SCHEMAS)
def test_the_schemas_are_valid_and_closed(name: str) -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMAS[name])

    def check_closed(schema: Any) -> None:
        if isinstance(schema, list):
            for each in schema:
                check_closed(each)
        elif isinstance(schema, dict):
            if isinstance(schema.get("properties"), dict) and schema is not top:
                assert False in map(schema.get, ("additionalProperties", "unevaluatedProperties"))
            for each in schema.values():
                check_closed(each)

    top = SCHEMAS[name] if name in PARTS else None
    if name not in REQUESTS:
        check_closed(SCHEMAS[name])


@pytest.mark.parametrize("query", ["", *(each for some in QUERIES.values() for each in some)])
def test_every_query_is_answered_as_it_says(served: Served, query: str) -> None:
    alone = checked(served.client.post(f"/v1/caption?{query}", content=png()))
    files = form(png(), b"no picture", BLANK)
    lines = checked(served.client.post(f"/v1/captions?{query}", files=files))
    assert sorted(line["status"] for line in lines) == ["blank", "error", "ok"]
    # The body names the model of chat completions.
    names = [pair.partition("=")[2] for pair in query.split("&") if pair.startswith("model=")]
    body = chat(logprobs=True, top_logprobs=1) | {"model": [*names, "gpt"][0]}
    said = checked(served.client.post(f"/v1/chat/completions?{query}", json=body))
    if "sample" not in query:
        assert said[0]["choices"][0]["message"]["content"] == alone[0]["caption"]
    for field in ("caption", "n_best", "image"):
        with pytest.raises(jsonschema.ValidationError):
            check("Answer", {key: value for key, value in alone[0].items() if key != field})
    for more in ({"more": 1}, {"index": 0}, {"error": "x"}):
        with pytest.raises(jsonschema.ValidationError):
            check("Answer", alone[0] | more)


HOWS: list[dict[str, Any]] = [
    *({}, {"stream": True}),
    {"stream": True, "stream_options": {"include_usage": True}},
]


def test_every_form_of_body_is_answered_as_it_says(served: Served) -> None:
    found = []
    for headers in (
        {},
        {"Content-Type": "image/png"},
        {"Content-Type": "application/octet-stream"},
    ):
        found += checked(served.client.post("/v1/caption", content=png(), headers=headers))
    found += checked(served.client.post("/v1/caption", files=form(png())))
    assert found[1:] == found[:1] * 3
    for kind in ("image_url", "input_image"):
        for fields in (
            *({}, {"n": 2}, {"seed": 3}, {"max_tokens": 1}, {"max_completion_tokens": 2}),
            *({"logprobs": True}, {"logprobs": True, "top_logprobs": 3}, {"logprobs": False}),
        ):
            for how in (
                {},
                {"stream": True},
                {"stream": True, "stream_options": {"include_usage": 1}},
            ):
                body = chat(kind=kind, **fields, **how)
                check("Chat", body | {"stream_options": {}})
                checked(served.client.post("/v1/chat/completions", json=body))
    body = chat(**HOWS[-1])
    *_, last = checked(served.client.post("/v1/chat/completions", json=body))
    assert last["choices"] == [] and last["usage"]["total_tokens"] > 0
    for path in GETS:
        checked(served.client.get(path))


def test_every_error_is_as_it_says(served: Served) -> None:
    bad = [
        *(served.client.post("/v1/caption", content=each) for each in (b"", b"no picture")),
        served.client.post("/v1/caption?model=other", content=png()),
        served.client.post("/v1/caption?maps=attention", content=png()),
        served.client.post("/v1/caption", files=form(png(), png())),
        served.client.post("/v1/captions", content=png()),
        served.client.post("/v1/captions", files={"other": png()}),
        *(served.client.post(POSTS[2], content=each) for each in (b"", b"x", b"[]", b"{}")),
        served.client.post(POSTS[2], json=chat(b"no picture")),
    ]
    with serving({"toy": toys.captioner()}, Limits(max_bytes=2**10), token="t" * 20) as locked:
        bad += [locked.client.post(path, content=png()) for path in POSTS]
        bad += [locked.client.get(path) for path in ("/v1/models", "/metrics")]
        headers = {"Authorization": f"Bearer {'t' * 20}"}
        bad += [locked.client.post(each, content=bytes(2**11), headers=headers) for each in POSTS]
        assert checked(locked.client.get("/healthz")) == [{"status": "ok"}]
    with serving({"toy": toys.captioner()}, Limits(max_queue=0)) as full:
        bad += [full.client.post(each, content=png()) for each in POSTS]
    for answer in bad:
        assert answer.status_code >= 400
        checked(answer)
    assert {answer.status_code for answer in bad} >= {400, 401, 404, 413, 415, 503}


def test_every_field_that_it_names_is_answered(served: Served) -> None:
    found: set[str] = set()

    def collect(value: Any) -> None:
        for each in value.values() if isinstance(value, dict) else value:
            if isinstance(each, dict | list):
                collect(each)
        found.update(value if isinstance(value, dict) else ())

    for query in ("words=50&trace=true&model=looks&maps=true", ""):
        files = form(png(), b"x")
        collect(checked(served.client.post(f"/v1/captions?{query}", files=files)))
    for how in HOWS:
        body = chat(logprobs=True, top_logprobs=1, **how)
        collect(checked(served.client.post(POSTS[2], json=body)))
    collect(checked(served.client.post(POSTS[2], json=[])))
    for path in ("/v1/models", "/healthz"):
        collect(checked(served.client.get(path)))

    def names(schema: Any) -> Iterator[str]:
        for key, each in schema.items() if isinstance(schema, dict) else enumerate(schema):
            if key == "properties":
                yield from each
            if isinstance(each, dict | list):
                yield from names(each)

    answers = {name: schema for name, schema in SCHEMAS.items() if name not in REQUESTS}
    assert set(names(answers)) == found


def test_a_trace_is_that_of_python(served: Served) -> None:
    model = served.app.state.service.models["toy"]
    query = {"trace": "true", "words": 2, "beam_size": 2, "forbid": ["a", "the"]}
    answer = served.client.post("/v1/caption", params=query, content=png()).json()
    expected = model.trace(png(), alternatives=2, beam_size=2, forbid=("a", "the"))
    assert answer["trace"] == json.loads(json.dumps(expected.to_json()))
    assert answer["caption"] == expected.captions[0].text
