"""Pictures that wait are captioned together, and a client that is gone costs nothing further."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from torch import Tensor

from captioner.captioner import Captioner
from captioner.errors import PlugInError
from captioner.serving.limits import Limits

import toys
from served import Served, png, serving, wait_until

COLOURS = list(toys.COLOURS.values())


class Gated:
    """A model that waits at a gate before it encodes, and counts what it computes."""

    def __init__(self, captioner: Captioner):
        self.captioner = captioner
        self.gate = threading.Event()
        self.gate.set()
        self.encoded: list[int] = []
        self.searched: list[int] = []
        encode, search = captioner.encoder.see, captioner.search_each

        def see(pixels: Tensor) -> Tensor:
            self.encoded.append(len(pixels))
            assert self.gate.wait(20)
            return encode(pixels)

        def search_each(features: Tensor, *args: Any, **named: Any) -> Any:
            self.searched.append(len(features))
            return search(features, *args, **named)

        captioner.encoder.see = see  # type: ignore[method-assign]
        captioner.search_each = search_each  # type: ignore[method-assign]


@pytest.fixture
def gated() -> Gated:
    return Gated(toys.captioner())


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(40) as threads:
        yield threads


def post(served: Served, content: bytes, **query: Any) -> httpx.Response:
    return httpx.post(
        f"http://127.0.0.1:{served.port}/v1/caption", content=content, params=query, timeout=20
    )


def upload(port: int, length: int = 1000) -> socket.socket:
    """Begin an upload that does not go on."""
    connection = socket.create_connection(("127.0.0.1", port))
    head = f"POST /v1/caption HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n"
    connection.sendall(head.encode() + b"x")
    return connection


def test_waiting_pictures_are_captioned_together_and_as_alone(
    gated: Gated, pool: ThreadPoolExecutor
) -> None:
    batches: list[int] = []
    alone = [gated.captioner.search(gated.captioner.encode([png(colour=c)]))[0] for c in COLOURS]
    with serving({"toy": gated.captioner}, Limits(max_batch=4)) as served:
        served.queue.tell = batches.append
        gated.gate.clear()
        first = pool.submit(post, served, png())
        wait_until(lambda: batches == [1])
        rest = [pool.submit(post, served, png(colour=colour)) for colour in COLOURS]
        wait_until(lambda: served.queue.size == 7)
        gated.gate.set()
        answers = [future.result().json() for future in rest]
        assert first.result().status_code == 200
    assert batches == [1, 4, 2]
    assert [answer["caption"] for answer in answers] == [each[0].text for each in alone]


def test_different_wishes_share_a_batch(gated: Gated, pool: ThreadPoolExecutor) -> None:
    with serving({"toy": gated.captioner}) as served:
        gated.gate.clear()
        first = pool.submit(post, served, png())
        wait_until(lambda: len(gated.encoded) == 1)
        wishes: list[dict[str, Any]] = [{}, {"words": 2}, {"n_best": 3}, {"start": "the"}, {}]
        rest = [pool.submit(post, served, png(), **wish) for wish in wishes]
        wait_until(lambda: served.queue.size == 6)
        gated.gate.set()
        answers = [future.result().json() for future in rest]
        captions = [first.result().json()["caption"], *(each["caption"] for each in answers)]
        assert captions[0] == captions[1] == captions[2] == captions[5]
    assert sum(gated.encoded) == 6
    assert len(answers[1]["words"][0]["alternatives"]) == 2
    assert len(answers[2]["n_best"]) == 3
    assert answers[3]["caption"].startswith("the")


def seconds_of(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def test_a_picture_waits_only_for_others_that_are_on_their_way() -> None:
    with serving({"toy": toys.captioner()}, Limits(max_wait_ms=1000)) as served:
        post(served, png())
        assert seconds_of(lambda: post(served, png())) < 0.8
        with upload(served.port):
            wait_until(lambda: served.app.state.service.uploads.reading == 1)
            assert 1 <= seconds_of(lambda: post(served, png())) < 5


def test_a_full_queue_answers_at_once(gated: Gated, pool: ThreadPoolExecutor) -> None:
    with serving({"toy": gated.captioner}, Limits(max_queue=3)) as served:
        gated.gate.clear()
        accepted = [pool.submit(post, served, png()) for _ in range(3)]
        wait_until(lambda: served.queue.size == 3)
        started = time.perf_counter()
        answer = served.client.post("/v1/caption", content=png((1500, 1500)) + bytes(2**20))
        assert time.perf_counter() - started < 0.5
        assert answer.status_code == 503
        assert answer.headers["retry-after"] == "1"
        assert answer.json()["error"].startswith("busy: 3 pictures wait already")
        files = [("image", ("a.png", png(), "image/png"))] * 2
        assert served.client.post("/v1/captions", files=files).status_code == 503
        gated.gate.set()
        assert [future.result().status_code for future in accepted] == [200] * 3
        lines = served.client.post("/v1/captions", files=files * 5).text.splitlines()
        assert [json.loads(line)["status"] for line in lines] == ["ok"] * 10


def hang_up(served: Served) -> None:
    """Post a picture, and leave as soon as it is in the queue."""
    before = served.queue.size
    connection = http.client.HTTPConnection("127.0.0.1", served.port)
    connection.request("POST", "/v1/caption", png())
    wait_until(lambda: served.queue.size == before + 1)
    connection.close()
    wait_until(lambda: served.queue.size == before)


def test_who_hangs_up_costs_nothing_further(gated: Gated, pool: ThreadPoolExecutor) -> None:
    with serving({"toy": gated.captioner}) as served:
        gated.gate.clear()
        hang_up(served)  # perhaps while it is encoded
        first = pool.submit(post, served, png())
        wait_until(lambda: served.queue.size == 1)
        for _ in range(5):
            hang_up(served)
        gated.gate.set()
        assert first.result().status_code == 200
        assert sum(gated.searched) == 1
        assert sum(gated.encoded) <= 2
        assert served.queue.size == served.app.state.service.uploads.held == 0
        assert served.queue.memory.used == 0
        assert sum(" 499, " in line for line in served.log) == 6


def test_who_hangs_up_while_many_pictures_are_captioned(gated: Gated) -> None:
    with serving({"toy": gated.captioner}, Limits(max_batch=2)) as served:
        gated.gate.clear()
        form = httpx.Request(
            "POST", "http://localhost/", files=[("image", ("a.png", png(), "image/png"))] * 50
        )
        connection = http.client.HTTPConnection("127.0.0.1", served.port)
        connection.request("POST", "/v1/captions", form.read(), dict(form.headers))
        wait_until(lambda: served.queue.size == 2)
        connection.close()
        wait_until(lambda: served.queue.size == 0)
        gated.gate.set()
        assert served.is_alive()
        assert sum(gated.encoded) <= 3


def read_all(connection: socket.socket) -> bytes:
    return b"".join(iter(lambda: connection.recv(65536), b""))


def test_an_upload_that_is_too_slow_or_too_large() -> None:
    with serving({"toy": toys.captioner()}, Limits(max_seconds=0.5, max_bytes=5000)) as served:
        started = time.perf_counter()
        with upload(served.port) as connection:
            answer = read_all(connection)
        assert 0.4 < time.perf_counter() - started < 5
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b"the upload took more than 0.5 s" in answer
        for content in (bytes(5001), iter([bytes(3000), bytes(3000)]), bytes(2**22)):
            refused = served.client.post("/v1/caption", content=content)
            assert refused.status_code == 413
            assert refused.json()["error"].startswith("body: more than the limit of 5,000 bytes")
        assert served.is_alive()


def test_too_many_uploads_at_once() -> None:
    with serving({"toy": toys.captioner()}, Limits(max_uploads=2)) as served:
        with upload(served.port), upload(served.port):
            wait_until(lambda: served.app.state.service.uploads.reading == 2)
            answer = post(served, png())
            assert answer.status_code == 503
            assert "2 uploads at the same time" in answer.json()["error"]
        wait_until(lambda: served.app.state.service.uploads.reading == 0)
        assert served.is_alive()


def test_too_many_bytes_at_once(gated: Gated, pool: ThreadPoolExecutor) -> None:
    size = len(png())
    with serving({"toy": gated.captioner}, Limits(max_bytes=size)) as served:
        uploads = served.app.state.service.uploads
        gated.gate.clear()
        accepted = [pool.submit(post, served, png()) for _ in range(16)]
        wait_until(lambda: uploads.held == 16 * size)
        refused = post(served, png())
        assert refused.status_code == 503
        assert "too many bytes wait" in refused.json()["error"]
        gated.gate.set()
        assert [future.result().status_code for future in accepted] == [200] * 16
        assert uploads.held == 0
        assert served.is_alive()


def test_a_caption_that_takes_too_long(gated: Gated) -> None:
    with serving({"toy": gated.captioner}, Limits(max_seconds=0.3)) as served:
        gated.gate.clear()
        answer = post(served, png())
        assert answer.status_code == 503
        assert "no caption after 0.3 s" in answer.json()["error"]
        gated.gate.set()
        assert served.is_alive()


def test_too_many_pixels() -> None:
    with serving({"toy": toys.captioner()}, Limits(max_pixels=1199)) as served:
        answer = post(served, png((40, 30)))
        assert answer.status_code == 413
        assert answer.json()["error"].startswith("image: 40 x 30 pixels, more than the limit")


def test_a_failure_of_the_model_is_one_line_and_not_the_end(gated: Gated) -> None:
    with serving({"toy": gated.captioner}) as served:
        whole = gated.captioner.search_each

        def fail(*_: object, **__: object) -> None:
            raise RuntimeError("secret details")

        gated.captioner.search_each = fail  # type: ignore[method-assign, assignment]
        answer = post(served, png())
        assert answer.status_code == 500
        assert answer.json() == {"error": "the server failed; its log says why"}
        assert any(line.startswith("error: RuntimeError in ") for line in served.log)
        assert not any("secret" in line for line in served.log)
        gated.captioner.search_each = whole  # type: ignore[method-assign]
        assert served.is_alive()


def test_a_plug_in_that_fails_is_named_in_the_log(gated: Gated) -> None:
    with serving({"toy": gated.captioner}) as served:
        whole, line = gated.captioner.search_each, "plug-in weak of thing 1.0 fails: ValueError: x"

        def fail(*_: object, **__: object) -> None:
            raise PlugInError(line)

        gated.captioner.search_each = fail  # type: ignore[method-assign, assignment]
        answer = post(served, png())
        assert answer.status_code == 500
        assert answer.json() == {"error": "the server failed; its log says why"}
        assert f"error: {line}" in served.log
        gated.captioner.search_each = whole  # type: ignore[method-assign]
        assert served.is_alive()


# --- the end


class Clients:
    """Post pictures one after another, and count the answers."""

    def __init__(self, port: int):
        self.address = f"http://127.0.0.1:{port}/v1/caption"
        self.stop = threading.Event()
        self.captions: list[str] = []
        self.refusals = 0
        self.strange: list[str] = []

    def run(self) -> None:
        while not self.stop.is_set():
            try:
                answer = httpx.post(self.address, content=png(), timeout=60)
            except httpx.TransportError:  # the listener is closed
                self.refusals += 1
                time.sleep(0.05)
                continue
            if answer.status_code == 200:
                self.captions.append(answer.json()["caption"])
            elif answer.status_code == 503:
                self.refusals += 1
            else:
                self.strange.append(answer.text)


@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.usefixtures("ends_what_it_starts")
def test_sigterm_finishes_what_runs_and_refuses_the_rest(
    tmp_path: Path, pool: ThreadPoolExecutor
) -> None:
    toys.captioner().save(tmp_path / "model")
    command = [sys.executable, "-m", "captioner", "serve", "--port", "0", "--model"]
    process = subprocess.Popen(
        [*command, str(tmp_path / "model")], stderr=subprocess.PIPE, text=True
    )
    assert process.stderr
    line = process.stderr.readline()
    port = int(line.rstrip("/\n").rpartition(":")[2])
    clients = Clients(port)
    running = [pool.submit(clients.run) for _ in range(8)]
    try:
        with upload(port, len(png())) as connection:
            wait_until(lambda: len(clients.captions) > 10, 60)
            process.send_signal(signal.SIGTERM)
            wait_until(lambda: clients.refusals > 8, 60)
            clients.stop.set()
            connection.sendall(png()[1:])  # its header came before the signal
            answer = connection.recv(10_000)
        _, log = process.communicate(timeout=120)
    finally:
        clients.stop.set()
        process.kill()
    assert [future.result() for future in running] == [None] * 8
    assert answer.startswith(b"HTTP/1.1 415 ")
    assert process.returncode == 0
    assert log.endswith("stopped\n")
    assert clients.strange == []
    assert all(clients.captions)
    assert len(clients.captions) == log.count("POST /v1/caption 200, ")
