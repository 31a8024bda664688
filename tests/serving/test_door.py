"""A request is refused while the server stops, and a client sees why though it still sends."""

from __future__ import annotations

import asyncio
import errno
import socket
import time

import httpx
import pytest

from captioner.serving.access import Access
from captioner.serving.app import build_app
from captioner.serving.door import lossy
from captioner.serving.limits import Limits

import toys
from served import png, serving, wait_until


def test_a_server_that_stops_refuses_new_requests_on_open_connections() -> None:
    with serving({"toy": toys.captioner()}) as served:
        assert served.client.post("/v1/caption", content=png()).status_code == 200
        served.app.state.stopping = True  # as after SIGTERM; the connection stays open
        for answer in (served.client.post("/v1/caption", content=png()), served.client.get("/")):
            assert answer.status_code == 503
            assert answer.json() == {"error": "the server stops; try again later"}
            assert answer.headers["connection"] == "close"
        served.app.state.stopping = False
        assert served.is_alive()


def test_a_client_that_still_sends_reads_its_refusal() -> None:
    """A socket closed with unread bytes is reset, and the answer on its way is lost."""
    size = 2**20
    head = f"POST /v1/caption HTTP/1.1\r\nHost: localhost\r\nContent-Length: {size}\r\n\r\n"
    with (
        serving({"toy": toys.captioner()}, Limits(max_bytes=1000)) as served,
        socket.create_connection(("127.0.0.1", served.port), timeout=20) as connection,
    ):
        connection.sendall(head.encode())
        time.sleep(0.2)  # the answer is there, and the client does not look yet
        for _ in range(16):
            connection.sendall(bytes(size // 16))
            time.sleep(0.01)
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
        assert answer.startswith(b"HTTP/1.1 413 ")
        assert b"more than the limit of 1,000 bytes" in answer


def test_a_log_that_is_full_costs_no_request() -> None:
    said = []

    def say(line: str) -> None:
        said.append(line)
        raise OSError(errno.ENOSPC, "No space left on device")

    models, log = {"toy": toys.captioner()}, lossy(say)
    app = build_app(models, Limits(), Access(), log)

    async def visit() -> list[int]:
        transport = httpx.ASGITransport(app)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://localhost") as client,
        ):
            answers = [
                await client.get("/nothing"),
                await client.post("/v1/caption", content=png()),
            ]
            return [answer.status_code for answer in answers]

    assert asyncio.run(visit()) == [404, 200]
    assert len(said) == 2


def test_without_free_files_one_line_is_logged(capfd: pytest.CaptureFixture[str]) -> None:
    with serving({"toy": toys.captioner()}) as served:
        loop = served.queue._task.get_loop()

        def fail(error: Exception) -> None:
            context = {"message": "socket.accept() out of system resource", "exception": error}
            loop.call_soon_threadsafe(loop.call_exception_handler, context)

        for _ in range(500):  # as asyncio does each second
            fail(OSError(errno.EMFILE, "Too many open files"))
        fail(ValueError("SECRET"))
        wait_until(lambda: any("ValueError" in line for line in served.log))
        assert served.is_alive()
    assert [line for line in served.log if line.startswith("error: ")] == [
        "error: too many open files, so new connections wait; raise `ulimit -n`",
        "error: ValueError in the server",
    ]
    assert capfd.readouterr().err == ""
