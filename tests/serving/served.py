"""A server on loopback with a tiny model, and raw requests to it."""

from __future__ import annotations

import asyncio
import io
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
from PIL import Image

from captioner.captioner import Captioner
from captioner.serving.access import Access
from captioner.serving.app import build_app
from captioner.serving.limits import Limits
from captioner.serving.server import build_server, listen

SECONDS = 20.0


@dataclass
class Served:
    """A server that runs in a thread.

    Attributes:
        client: an HTTP client of the server.
        port: of the server on 127.0.0.1.
        log: the lines that it printed.
        app: the application.
    """

    client: httpx.Client
    port: int
    log: list[str] = field(default_factory=list)
    app: Any = None

    @property
    def queue(self) -> Any:
        return self.app.state.service.queue

    def send(self, data: bytes, *, seconds: float = SECONDS, end: bool = False) -> bytes:
        """Send raw bytes and return all that comes back until the server closes."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=seconds) as connection:
            connection.sendall(data)
            if end:
                connection.shutdown(socket.SHUT_WR)
            answer = b""
            while chunk := connection.recv(65536):
                answer += chunk
            return answer

    def is_alive(self) -> bool:
        return self.client.post("/v1/caption", content=png()).status_code == 200


@contextmanager
def serving(
    models: Mapping[str, Captioner], limits: Limits | None = None, **access: Any
) -> Iterator[Served]:
    log: list[str] = []
    app = build_app(models, limits or Limits(), Access(**access), log.append)
    listener = listen("127.0.0.1", 0)
    port = listener.getsockname()[1]
    server = build_server(app)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])))
    thread.start()
    try:
        wait_until(lambda: server.started or not thread.is_alive())
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=SECONDS) as client:
            yield Served(client, port, log, app)
    finally:
        server.should_exit = True
        thread.join(SECONDS)
        assert not thread.is_alive()


def wait_until(is_true: Any, seconds: float = SECONDS) -> None:
    end = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


def png(size: tuple[int, int] = (40, 30), colour: tuple[int, int, int] = (200, 30, 30)) -> bytes:
    image = Image.new("RGB", size, (120, 120, 120))
    image.paste(colour, (4, 4, size[0] // 2, size[1] // 2))
    content = io.BytesIO()
    image.save(content, "PNG")
    return content.getvalue()
