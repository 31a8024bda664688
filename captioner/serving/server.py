"""Runs the application: its socket, its connections, and its end."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

import h11
import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol

from captioner.errors import ConfigError
from captioner.serving.door import LINGER
from captioner.system.foreign import plain

MOST_CONNECTIONS = 900
BACKLOG = 512  # connections that wait to be accepted
HEADER_SECONDS = 10.0  # from the opening of a connection, or the last answer, to a whole header
IDLE_SECONDS = 5  # that a connection stays open without a request
WRITE_SECONDS = 30.0  # that a client may leave its answer unread
IN_USE = 32  # open files besides the connections
STOPPED = (signal.SIGINT, signal.SIGTERM)


def most_connections() -> int:
    """Return how many connections the limit of open files allows."""
    try:
        import resource
    except ImportError:  # Windows
        return MOST_CONNECTIONS
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    room = soft - max(IN_USE, soft // 10)
    return MOST_CONNECTIONS if soft < 0 else max(1, min(MOST_CONNECTIONS, room))


class Connection(H11Protocol):
    """A connection that may not be slow or malformed for long.

    Uvicorn bounds the time between requests, but not the time of a header.
    """

    discarding = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Accept a connection, unless there are too many."""
        super().connection_made(transport)
        if len(self.connections) > most_connections():
            self._refuse(503, "busy: too many connections; try again")
        else:
            self._expect_header()

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        super().on_response_complete()
        if not self.transport.is_closing():
            self._expect_header()

    def data_received(self, data: bytes) -> None:
        """Read on, unless the connection is refused."""
        if not self.discarding:
            super().data_received(data)

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002
        """Answer what is not HTTP."""
        self._refuse(400, "not a valid HTTP/1.1 request")

    def pause_writing(self) -> None:
        """Wait for a client that reads slowly, but not for ever."""
        super().pause_writing()
        self._slow = self.loop.call_later(WRITE_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        """Go on."""
        super().resume_writing()
        self._slow.cancel()

    def _expect_header(self) -> None:
        self.loop.call_later(HEADER_SECONDS, self._check_header, self.cycle)

    def _check_header(self, before: object) -> None:
        if self.cycle is before and not self.transport.is_closing() and not self.discarding:
            self._refuse(408, f"no whole header within {HEADER_SECONDS:g} s")

    def _refuse(self, status: int, message: str) -> None:
        """Answer with one line, read on for a moment so that the client sees it, and close."""
        self.discarding = True
        body = json.dumps({"error": message}).encode()
        headers = [
            ("Content-Type", "application/json"),
            ("Content-Length", str(len(body))),
            ("Connection", "close"),
        ]
        events = (
            h11.Response(status_code=status, headers=headers, reason=b""),
            h11.Data(data=body),
            h11.EndOfMessage(),
        )
        with suppress(h11.LocalProtocolError):  # an answer is under way already
            for event in events:
                self.transport.write(self.conn.send(event) or b"")
        self.loop.call_later(LINGER, self.transport.close)


class Server(uvicorn.Server):
    """Uvicorn without its own handling of signals."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals to `serve`."""
        yield


def listen(host: str, port: int) -> socket.socket:
    """Open the socket; port 0 takes a free one.

    Raises:
        ConfigError: if the host is unknown or the port is taken.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family, backlog=BACKLOG)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or plain(error)
        raise ConfigError(f"host {plain(host, 60)}, port {port}: {reason}") from error


def address_of(listener: socket.socket) -> str:
    """Return the URL of the page for this machine."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/"


def build_server(app: Starlette) -> Server:
    """Build the server of an application."""
    config = uvicorn.Config(
        app,
        http=Connection,
        ws="none",
        lifespan="on",
        log_config=None,
        log_level="critical",  # a traceback may show what a request holds
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=IDLE_SECONDS,
        backlog=BACKLOG,
    )
    return Server(config)


def serve(app: Starlette, listener: socket.socket) -> None:
    """Serve until SIGTERM or SIGINT, then finish what is running; a second one ends at once."""
    server = build_server(app)

    def end(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        if server.should_exit:
            raise SystemExit(128 + number)
        app.state.stopping = True
        server.should_exit = True

    before = {number: signal.signal(number, end) for number in STOPPED}
    try:
        asyncio.run(server.serve(sockets=[listener]))
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
