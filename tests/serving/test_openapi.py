"""The OpenAPI file says what the routes do."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from starlette.routing import Route

from captioner.config import DecodingConfig
from captioner.page.assets import page_assets
from captioner.serving.app import OPENAPI
from captioner.serving.wish import OWN

import toys
from served import Served, png, serving

jsonschema = pytest.importorskip("jsonschema")
SPEC = yaml.safe_load(OPENAPI.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    looks = toys.captioner(toys.encoder(grid=2), attention="spatial")
    with serving({"toy": toys.captioner(), "looks": looks}) as running:
        yield running


def check(name: str, value: Any) -> None:
    """Check a value against a schema of the file."""
    schema = {"$ref": f"#/components/schemas/{name}", "components": SPEC["components"]}
    jsonschema.Draft202012Validator(schema).validate(value)


def test_it_names_every_route(served: Served) -> None:
    routes = {
        (route.path, method.lower())
        for route in served.app.routes
        if isinstance(route, Route)
        for method in (route.methods or set()) - {"HEAD"}
    }
    own = {route for route in routes if route[0] not in page_assets()}
    assert {(path, method) for path, item in SPEC["paths"].items() for method in item} == own
    assert served.client.get("/openapi.yaml").content == OPENAPI.read_bytes()


def test_it_names_every_query() -> None:
    for path in ("/v1/caption", "/v1/captions", "/v1/chat/completions"):
        names = [each["name"] for each in SPEC["paths"][path]["post"]["parameters"]]
        assert sorted(names) == sorted([*OWN, *DecodingConfig.model_fields])


@pytest.mark.parametrize("name", SPEC["components"]["schemas"])
def test_the_schemas_are_valid(name: str) -> None:
    jsonschema.Draft202012Validator.check_schema(SPEC["components"]["schemas"][name])


@pytest.mark.parametrize(
    "query",
    [
        "",
        "n_best=3",
        "words=2",
        "model=looks&maps=true",
        "trace=true&words=1",
        "model=looks&maps=gradient",
    ],
)
def test_the_answers_are_as_it_says(served: Served, query: str) -> None:
    answer = served.client.post(f"/v1/caption?{query}", content=png()).json()
    check("Answer", answer)
    files = [("image", ("a.png", png(), "image/png")), ("image", ("b.png", b"x", "image/png"))]
    for line in served.client.post(f"/v1/captions?{query}", files=files).text.splitlines():
        check("Line", json.loads(line))
    for name in ("caption", "n_best", "image"):
        with pytest.raises(jsonschema.ValidationError):
            check("Answer", {key: value for key, value in answer.items() if key != name})
    with pytest.raises(jsonschema.ValidationError):
        check("Answer", answer | {"more": 1})


def test_the_other_answers_are_as_it_says(served: Served) -> None:
    check("Models", served.client.get("/v1/models").json())
    check("Error", served.client.post("/v1/caption", content=b"x").json())
    check("ChatError", served.client.post("/v1/chat/completions", content=b"x").json())


def test_a_trace_is_that_of_python(served: Served) -> None:
    model = served.app.state.service.models["toy"]
    query = {"trace": "true", "words": 2, "beam_size": 2, "forbid": ["a", "the"]}
    answer = served.client.post("/v1/caption", params=query, content=png()).json()
    expected = model.trace(png(), alternatives=2, beam_size=2, forbid=("a", "the"))
    assert answer["trace"] == json.loads(json.dumps(expected.to_json()))
    assert answer["caption"] == expected.captions[0].text
