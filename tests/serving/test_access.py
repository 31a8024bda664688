"""Who may use the server: the token, the name in Host, the page that calls."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
from click.testing import CliRunner

from captioner.cli import main
from captioner.errors import ConfigError
from captioner.serving.access import Access, check_reach

import toys
from served import Served, png, serving

TOKEN = "correct-horse-battery"


@pytest.fixture(scope="module")
def locked() -> Iterator[Served]:
    access = {"token": TOKEN, "hosts": ["captions.test"], "origins": ["https://friend.test"]}
    with serving({"toy": toys.captioner()}, **access) as running:
        yield running


@pytest.fixture(scope="module")
def unlocked() -> Iterator[Served]:
    with serving({"toy": toys.captioner()}) as running:
        yield running


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


PROTECTED = (
    ("POST", "/v1/caption"),
    ("POST", "/v1/captions"),
    ("POST", "/v1/chat/completions"),
    ("GET", "/v1/models"),
    ("GET", "/metrics"),
    ("GET", "/nix"),
)


@pytest.mark.parametrize(("method", "path"), PROTECTED)
@pytest.mark.parametrize(
    "headers",
    [{}, {"Authorization": "Bearer"}, bearer(TOKEN[:-1]), bearer(TOKEN + "x"),
     bearer(TOKEN.upper()), {"Authorization": TOKEN}, {"Authorization": f"Basic {TOKEN}"},
     {"Authorization": f"Bearer {TOKEN} x"}],
)  # fmt: skip
def test_without_the_token_nothing_is_done(
    locked: Served, method: str, path: str, headers: dict[str, str]
) -> None:
    answer = locked.client.request(method, path, headers=headers)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    error = answer.json()["error"]
    if path == "/v1/chat/completions":
        assert error["type"] == "invalid_request_error"  # the form that its clients read
        error = error["message"]
    assert error.startswith("Authorization: ")
    assert TOKEN not in answer.text


def test_a_token_of_other_characters_is_wrong(locked: Served) -> None:
    head = (
        b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nAuthorization: Bearer "
    )
    assert locked.send(head + "ключ".encode() + b"\r\n\r\n").startswith(b"HTTP/1.1 401 ")


def test_with_the_token_all_is_as_without_one(locked: Served, unlocked: Served) -> None:
    for scheme in ("Bearer", "bearer"):
        headers = {"Authorization": f"{scheme} {TOKEN}"}
        answer = locked.client.post("/v1/caption", content=png(), headers=headers)
        assert answer.json() == unlocked.client.post("/v1/caption", content=png()).json()
    assert locked.client.get("/metrics", headers=bearer(TOKEN)).status_code == 200
    assert not any(TOKEN in line for line in locked.log)


@pytest.mark.parametrize("path", ["/", "/healthz", "/openapi.yaml", "/page/main.js"])
def test_what_says_nothing_needs_no_token(locked: Served, path: str) -> None:
    assert locked.client.get(path).status_code == 200


@pytest.mark.parametrize(
    "host",
    ["evil.test", "localhost.evil.test", "127.0.0.1.evil.test", "evil.test:80", "", "[", "[::1",
     "local host", "127.0.0.1:x", "localhost:1:2", "localhost/", "user@localhost",
     "captions.test.evil.test", "xn--lcalhost-54a"],
)  # fmt: skip
def test_a_foreign_name_is_refused(unlocked: Served, host: str) -> None:
    head = f"GET /v1/models HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
    answer = unlocked.send(head.encode())
    assert answer.startswith((b"HTTP/1.1 421 ", b"HTTP/1.1 400 "))
    assert b'{"error":' in answer


@pytest.mark.parametrize(
    "host",
    ["localhost", "LOCALHOST:8000", "localhost.", "127.0.0.1", "127.0.0.1:1", "[::1]:8000",
     "192.0.2.7:8000"],
)  # fmt: skip
def test_the_own_names_are_taken(unlocked: Served, host: str) -> None:
    assert unlocked.client.get("/v1/models", headers={"Host": host}).status_code == 200


def test_a_named_host_is_taken(locked: Served) -> None:
    headers = bearer(TOKEN) | {"Host": "Captions.test:443"}
    assert locked.client.get("/v1/models", headers=headers).status_code == 200


@pytest.mark.parametrize("origin", ["https://evil.test", "null", "http://localhost", "http://"])
def test_another_page_may_not_call(unlocked: Served, origin: str) -> None:
    headers = {"Origin": origin}
    answer = unlocked.client.post("/v1/caption", content=png(), headers=headers)
    assert answer.status_code == 403
    assert answer.json()["error"].startswith("Origin: ")
    assert "access-control-allow-origin" not in answer.headers


def test_the_own_page_may_call(unlocked: Served) -> None:
    headers = {"Origin": f"http://127.0.0.1:{unlocked.port}"}
    assert unlocked.client.post("/v1/caption", content=png(), headers=headers).status_code == 200


def test_a_page_that_is_allowed_may_call(locked: Served) -> None:
    origin = {"Origin": "https://friend.test"}
    asks = {"Access-Control-Request-Method": "POST"}
    asks |= {"Access-Control-Request-Headers": "authorization, content-type"}
    before = locked.client.options("/v1/caption", headers=origin | asks)
    assert before.status_code == 200
    assert before.headers["access-control-allow-origin"] == "https://friend.test"
    allowed = before.headers["access-control-allow-headers"].lower()
    assert "authorization" in allowed and "content-type" in allowed
    for headers, status in ((bearer(TOKEN), 200), ({}, 401)):
        answer = locked.client.post("/v1/caption", content=png(), headers=origin | headers)
        assert answer.status_code == status
        assert answer.headers["access-control-allow-origin"] == "https://friend.test"
    evil = locked.client.options("/v1/caption", headers=asks | {"Origin": "https://evil.test"})
    assert "access-control-allow-origin" not in evil.headers


@pytest.mark.parametrize(
    ("address", "token", "no_token", "message"),
    [
        ("0.0.0.0", None, False, "other machines reach it"),
        ("0.0.0.0", TOKEN, False, None),
        ("0.0.0.0", None, True, None),
        ("0.0.0.0", TOKEN, True, "a token is given too"),
        ("127.0.0.1", None, False, None),
        ("127.0.0.1", TOKEN, False, None),
        ("127.8.9.1", None, False, None),
    ],
)
def test_other_machines_need_a_token(
    address: str, token: str | None, no_token: bool, message: str | None
) -> None:
    with socket.create_server((address, 0)) as listener:
        if message is None:
            check_reach(listener, Access(token=token), no_token=no_token)
        else:
            with pytest.raises(ConfigError, match=message):
                check_reach(listener, Access(token=token), no_token=no_token)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--host", "0.0.0.0"), "set --token or $CAPTIONER_TOKEN"),
        (("--token", "short"), "error: --token: must be 8 or more ASCII characters"),
        (("--token", "long but spaced"), "error: --token: must be 8 or more ASCII characters"),
        (("--allow-host", "a:80"), "must be a name"),
        (("--allow-origin", "friend.test"), "must be as https://example.org"),
        (("--host", "no.such.host.invalid"), "error: "),
        (("--host", "0.0.0.0", "--token", TOKEN, "--no-token"), "a token is given too"),
    ],
)
def test_a_wrong_option_is_one_line(words: tuple[str, ...], message: str) -> None:
    done = CliRunner().invoke(main, ["serve", "--model", "scenes", "--port", "0", *words])
    assert done.exit_code == 2
    assert message in done.stderr
    assert "Traceback" not in done.output
    assert done.stderr.count("\n") == 1


def test_the_port_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
        done = CliRunner().invoke(main, ["serve", "--model", "scenes", "--port", port])
    assert done.exit_code == 2
    assert f"port {port}: " in done.stderr and done.stderr.count("\n") == 1
