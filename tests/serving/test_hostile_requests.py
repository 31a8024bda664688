"""What strangers send: each is answered with one line, and the server lives on."""

from __future__ import annotations

import io
import json
import socket
import struct
import threading
import zlib
from collections.abc import Iterator
from dataclasses import replace

import httpx
import pytest

from captioner.errors import ImageError
from captioner.images.decode import read_file
from captioner.serving.limits import Limits
from captioner.serving.server import most_connections

import toys
from hostile import Case, make_cases
from served import SECONDS, Served, png, serving

# Pytest turns the warnings of Pillow into errors.
pytestmark = pytest.mark.filterwarnings("ignore:::PIL")
LIMITS = Limits(max_seconds=2, max_bytes=2**22, max_images=100)


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serving({"toy": toys.captioner()}, LIMITS) as running:
        yield running


@pytest.fixture(autouse=True)
def _lives_on(served: Served) -> Iterator[None]:
    yield
    assert served.is_alive()
    assert served.queue.size == 0
    assert not any(line.startswith("error: ") for line in served.log)


def check(answer: bytes, *status: int) -> None:
    """Check that a raw answer is an error of one line of JSON."""
    head, _, body = answer.partition(b"\r\n\r\n")
    assert int(head.split()[1]) in status, answer
    error = json.loads(body)["error"]
    assert error and "\n" not in error and "Traceback" not in error


# --- pictures


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Case, bytes]]:
    found = []
    for case in make_cases(tmp_path_factory.mktemp("hostile") / "files"):
        try:
            found.append((case, read_file(case.path)))
        except ImageError:  # no file that can be posted
            continue
    assert len(found) > 150
    return found


def is_right(case: Case, status: int, answer: dict[str, object]) -> bool:
    if status == 200:
        return "ok" in case.expected and isinstance(answer["caption"], str)
    error = str(answer["error"])
    one_line = len(error.splitlines()) == 1 and error.isprintable() and len(error) < 1000
    refused = case.expected != ("ok",) and status in (400, 413, 415, 422)
    return refused and one_line and str(case.path) not in error


def test_each_hostile_picture_is_captioned_or_refused(
    served: Served, cases: list[tuple[Case, bytes]]
) -> None:
    wrong = {}
    for case, content in cases:
        answer = served.client.post("/v1/caption", content=content)
        if len(content) > LIMITS.max_bytes:
            assert answer.status_code == 413
        elif not is_right(case, answer.status_code, answer.json()):
            wrong[case.name] = answer.text
    assert wrong == {}


def test_all_in_one_form_have_a_line_each(cases: list[tuple[Case, bytes]]) -> None:
    some = [each for each in cases if len(each[1]) < 20_000][: LIMITS.max_images]
    files = [("image", ("x", content)) for _, content in some]
    # How long a hundred pictures take says how busy the machine is.
    with serving({"toy": toys.captioner()}, replace(LIMITS, max_seconds=600)) as patient:
        answer = patient.client.post("/v1/captions", files=files)
        assert patient.is_alive()
    assert answer.status_code == 200
    lines = {line["index"]: line for line in map(json.loads, answer.text.splitlines())}
    assert sorted(lines) == list(range(len(some)))
    for index, (case, _) in enumerate(some):
        line = lines[index]
        assert is_right(case, 422 if line["status"] == "error" else 200, line), case.name


def test_a_bomb(served: Served) -> None:
    """60,000 x 60,000 pixels in a few kilobytes."""
    head = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    rows = zlib.compress(bytes(10**6), 9)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    answer = served.client.post("/v1/caption", content=bomb)
    assert answer.status_code == 413
    assert answer.json()["error"].startswith("image: ")


# --- forms


def form(parts: list[bytes], end: bytes = b"--X--\r\n") -> bytes:
    return b"".join(b"--X\r\n" + part + b"\r\n" for part in parts) + end


PART = b'Content-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n'
KIND = {"Content-Type": "multipart/form-data; boundary=X"}


@pytest.mark.parametrize("path", ["/v1/caption", "/v1/captions"])
@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (form([PART + b"x"] * 10_000), KIND),
        (form([b"\r\nx"] * 10_000), KIND),
        (form([PART + png()], end=b""), KIND),
        (form([PART + png()], end=b"--X"), KIND),
        (form([]), KIND),
        (b"", KIND),
        (b"no form at all", KIND),
        (b"--Y\r\n" + PART + png() + b"\r\n--Y--\r\n", KIND),
        (form([PART.replace(b"image", b"other") + png()]), KIND),
        (form([b"X-Long: " + b"x" * 10_000 + b"\r\n" + PART + png()]), KIND),
        (form([b"X: x\r\n" * 5_000 + PART + png()]), KIND),
        (form([b"Content-Disposition: form-data\r\n\r\n" + png()]), KIND),
        (form([b"no colon\r\n\r\n" + png()]), KIND),
        (form([PART + png()]), {"Content-Type": "multipart/form-data"}),
        (form([PART + png()]), {"Content-Type": "multipart/form-data; boundary="}),
        (form([PART + png()]), {"Content-Type": "multipart/form-data; boundary=" + "X" * 5000}),
        (form([PART + b"x" * 2**22]), KIND),
    ],
)
def test_a_damaged_form_is_one_line(
    served: Served,
    path: str,
    body: bytes,
    kind: dict[str, str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    answer = served.client.post(path, content=body, headers=kind)
    assert caplog.records == []  # the parser would log bytes of the body
    assert answer.status_code in (400, 413), answer.text
    error = answer.json()["error"]
    assert error.startswith("body: ") and "\n" not in error


# --- requests that are hardly HTTP

POST = b"POST /v1/caption HTTP/1.1\r\nHost: localhost\r\n"

ONCE = POST + b"Connection: close\r\n"
CLOSE = b" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100),  # TLS
        b"hello\r\n\r\n",
        b"GET /\r\n\r\n",
        b"GET / HTTP/9.9\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X: " + b"x" * 100_000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X: x\r\n" * 20_000 + b"\r\n",
        b"GET /" + b"x" * 100_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX\x00Y: z\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX : z\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: localhost\r\n\r\n",
        POST + b"Content-Length: -1\r\n\r\n",
        POST + b"Content-Length: x\r\n\r\n",
        POST + b"Content-Length: 1e3\r\n\r\n",
        POST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef",
        POST + b"Content-Length: " + b"9" * 30 + b"\r\n\r\n",
        POST + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        POST + b"Transfer-Encoding: gzip\r\n\r\n",
        POST + b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
        POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        POST + b"Transfer-Encoding: chunked\r\n\r\n-1\r\nx\r\n0\r\n\r\n",
        POST + b"Transfer-Encoding: chunked\r\n\r\n" + b"f" * 40 + b"\r\n",
        POST + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabcdef\r\n0\r\n\r\n",
        POST + b"Transfer-Encoding: chunked\r\n\r\n1;" + b"x" * 100_000 + b"\r\na\r\n0\r\n\r\n",
    ],
)
def test_what_is_hardly_http(served: Served, request_bytes: bytes) -> None:
    check(served.send(request_bytes), 400, 414, 415, 421, 431, 505)


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (ONCE + b"Content-Length: 99999999\r\n\r\nx", 413),
        (ONCE + b"Content-Length: 100\r\n\r\nx", 408),
        (ONCE + b"Transfer-Encoding: chunked\r\n\r\n5\r\nabc", 408),
        (ONCE + b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 50, 408),
        (ONCE + b"Content-Length: 0\r\n\r\n", 400),
        (ONCE + b"\r\n", 400),
        (ONCE + b"Content-Length: 1\r\n\r\nxGET / HTTP/1.1\r\n\r\n", 415),
        (ONCE + b"Expect: 100-continue\r\nContent-Length: 99999999\r\n\r\n", 413),
        (b"CONNECT x:80" + CLOSE, 404),
        (b"TRACE /" + CLOSE, 405),
        (b"GET http://evil.test/v1/models" + CLOSE, 404),
        (b"GET /v1/models HTTP/1.1\r\nHost: localhost:1\r\nUpgrade: websocket\r\n"
         b"Connection: Upgrade, close\r\nSec-WebSocket-Key: x\r\n\r\n", 200),
    ],
)  # fmt: skip
def test_a_lying_length_and_other_tricks(served: Served, request_bytes: bytes, status: int) -> None:
    answer = served.send(request_bytes)
    if status == 200:
        assert answer.startswith(b"HTTP/1.1 200 ")
    else:
        check(answer, status)


def test_the_second_of_two_requests_in_one_is_answered_on_its_own(served: Served) -> None:
    content = png()
    one = POST + f"Content-Length: {len(content)}\r\n\r\n".encode() + content
    two = ONCE + b"Content-Length: 1\r\n\r\nx"
    answer = served.send(one + two)
    assert answer.startswith(b"HTTP/1.1 200 ")
    check(answer[answer.index(b"HTTP/1.1 415 ") :], 415)


def test_a_slow_header(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("captioner.serving.server.HEADER_SECONDS", 0.5)
    check(served.send(b"GET / HTTP/1.1\r\nHost: loc"), 408)
    check(served.send(b""), 408)
    again = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\nGET / HT"
    answer = served.send(again)
    assert answer.startswith(b"HTTP/1.1 200 ")
    check(answer[answer.rindex(b"HTTP/1.1 ") :], 408)


def test_a_drop_at_a_time(served: Served) -> None:
    with socket.create_connection(("127.0.0.1", served.port), timeout=SECONDS) as connection:
        connection.sendall(POST + b"Content-Length: 1000\r\n\r\n")
        stop = threading.Event()

        def drip() -> None:
            while not stop.wait(0.1):
                try:
                    connection.sendall(b"x")
                except OSError:
                    return

        thread = threading.Thread(target=drip)
        thread.start()
        answer = connection.recv(65536)
        while b"}" not in answer:
            answer += connection.recv(65536)
        stop.set()
        thread.join()
    check(answer, 408)


@pytest.mark.parametrize(("soft", "most"), [(1024, 900), (60, 28), (20, 1), (-1, 900)])
def test_connections_leave_room_for_other_files(
    monkeypatch: pytest.MonkeyPatch, soft: int, most: int
) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda kind: (soft, soft))
    assert most_connections() == most


def test_too_many_connections(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("captioner.serving.server.MOST_CONNECTIONS", 5)
    idle = [socket.create_connection(("127.0.0.1", served.port)) for _ in range(6)]
    try:
        answer = served.send(b"")
        check(answer, 503)
    finally:
        for connection in idle:
            connection.close()


def test_who_leaves_in_the_middle(served: Served) -> None:
    content = png((300, 300))
    head = POST + f"Content-Length: {len(content)}\r\n\r\n".encode()
    for cut in (10, len(POST) + 5, len(head), len(head) + 20, len(head) + len(content)):
        for reset in (False, True):
            connection = socket.create_connection(("127.0.0.1", served.port))
            if reset:
                linger = struct.pack("ii", 1, 0)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            connection.sendall((head + content)[:cut])
            connection.close()


def test_a_refused_client_that_still_sends_sees_why(served: Served) -> None:
    large = io.BytesIO(bytes(6 * 2**20))
    answer = httpx.post(f"http://127.0.0.1:{served.port}/v1/caption?beam=2", content=large.read())
    assert answer.status_code == 400
    assert answer.headers["connection"] == "close"


def test_nothing_is_written(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file system may be read-only: a form stays in memory."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a file was made")

    monkeypatch.setattr("tempfile.SpooledTemporaryFile.__init__", refuse)
    monkeypatch.setattr("tempfile.NamedTemporaryFile", refuse)
    files = [("image", ("../../etc/passwd", png((1000, 1000)) + bytes(2**21), "image/png"))]
    assert served.client.post("/v1/caption", files=files).status_code == 200
