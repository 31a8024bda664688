"""What every request passes first: it makes an error one line, and logs size, time and outcome."""

from __future__ import annotations

import asyncio
import errno
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from captioner.errors import PlugInError
from captioner.page.assets import POLICY
from captioner.serving.refusal import GoneError, RefusedError, refusal_of
from captioner.system.foreign import excerpt

SAY_AGAIN = 60.0  # seconds
LINGER = 1.0  # seconds that the rest of a refused body is read, so that the client sees the answer
MOST_LINGER = 2**23  # bytes
MOST_HEADER = 2**15  # bytes of the URL, and of the headers
BODY = (b"content-length", b"transfer-encoding")  # a request with one of these has a body
HUNG_UP = 499  # the status of a client that has hung up, in logs and metrics
HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"content-security-policy", POLICY.encode()),
)


def plain_error(refusal: RefusedError) -> dict[str, object]:
    """Return an error as JSON."""
    return {"error": refusal.message}


ToJson = Callable[[RefusedError], dict[str, object]]


@dataclass(slots=True)
class Visit:
    """One request, as the log shows it: bytes of the body, seconds, status.

    Attributes:
        to_json: the form of its errors.
    """

    method: str
    to_json: ToJson = plain_error
    route: str = "other"
    size: int = 0
    status: int = HUNG_UP
    seconds: float = 0.0


class Door:
    """The first layer of the application."""

    def __init__(
        self,
        app: ASGIApp,
        tell: Callable[[Visit], None],
        say: Callable[[str], None],
        forms: Mapping[str, ToJson],
    ):
        """Pass requests to `app`.

        Args:
            app: the next layer.
            tell: called after each request.
            say: called for an unexpected error.
            forms: the form of errors, of paths where it is not `plain_error`.
        """
        self.app, self.tell, self.say, self.forms = app, tell, say, forms

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        visit = Visit(scope["method"], self.forms.get(scope["path"], plain_error))
        started = time.perf_counter()
        exchange = _Exchange(receive, send, visit)
        scope["visit"] = visit
        try:
            self._check(scope)
            await self.app(scope, exchange.receive, exchange.send)
        except GoneError:
            visit.status = HUNG_UP
        except Exception as error:
            await self._refuse(error, scope, exchange)
        finally:
            visit.seconds = time.perf_counter() - started
            self.tell(visit)

    def _check(self, scope: Scope) -> None:
        """Refuse what is never answered."""
        if scope["app"].state.stopping:
            raise RefusedError(503, "the server stops; try again later", {"Connection": "close"})
        names = [name for name, _ in scope["headers"]]
        if scope["http_version"] not in ("1.0", "1.1"):
            raise RefusedError(505, "HTTP: must be version 1.1")
        if len(scope["raw_path"]) + len(scope["query_string"]) > MOST_HEADER:
            raise RefusedError(414, f"URL: more than {MOST_HEADER:,} bytes")
        if sum(len(name) + len(value) for name, value in scope["headers"]) > MOST_HEADER:
            raise RefusedError(431, f"headers: more than {MOST_HEADER:,} bytes")
        if b"transfer-encoding" in names and b"content-length" in names:
            raise RefusedError(400, "body: has both Content-Length and Transfer-Encoding")

    async def _refuse(self, error: Exception, scope: Scope, exchange: _Exchange) -> None:
        refusal = refusal_of(error)
        if isinstance(error, HTTPException):  # of the router
            path = excerpt(scope["path"], 60)
            what = (
                f"{scope['method']:.10} is not allowed" if error.status_code == 405 else "unknown"
            )
            headers = dict(error.headers or {})
            refusal = RefusedError(error.status_code, f"{path}: {what}; see /openapi.yaml", headers)
        if refusal is None:
            told = isinstance(error, PlugInError)
            self.say(f"error: {error if told else f'{type(error).__name__} in {_place_of(error)}'}")
        refusal = refusal or RefusedError(500, "the server failed; its log says why")
        if not exchange.started:
            await exchange.refuse(scope, refusal)


def _place_of(error: Exception) -> str:
    """Return file and line where an error was raised, without what a request holds."""
    last = traceback.extract_tb(error.__traceback__)[-1:]
    return f"{Path(last[0].filename).name}:{last[0].lineno}" if last else "the server"


def lossy(say: Callable[[str], None]) -> Callable[[str], None]:
    """Return `say` such that a full disk or a closed log costs a line and no request."""

    def try_to_say(line: str) -> None:
        with suppress(OSError):
            say(line)

    return try_to_say


class LoopErrors:
    """Handles the errors outside of requests: one line, and the same one not again for a minute.

    Without free file descriptors, asyncio fails to accept 500 times a second.
    """

    def __init__(self, say: Callable[[str], None]):
        """Print with `say`."""
        self.say = say
        self._said: dict[str, float] = {}

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
        """Say what failed, without what a request holds."""
        error = context.get("exception")
        if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
            line = "error: too many open files, so new connections wait; raise `ulimit -n`"
        elif isinstance(error, Exception):
            line = f"error: {type(error).__name__} in {_place_of(error)}"
        else:
            line = "error: in the event loop"
        if loop.time() - self._said.get(line, -SAY_AGAIN) >= SAY_AGAIN:
            self._said[line] = loop.time()
            self.say(line)


class _Exchange:
    """The messages of one request: counts the body and knows whether it is read to its end."""

    def __init__(self, receive: Receive, send: Send, visit: Visit):
        self._receive, self._send, self.visit = receive, send, visit
        self.started = self.ended = False

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.request":
            self.visit.size += len(message.get("body", b""))
        self.ended |= not message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started, self.visit.status = True, message["status"]
            message["headers"] = [*message.get("headers", ()), *HEADERS]
        await self._send(message)

    async def refuse(self, scope: Scope, refusal: RefusedError) -> None:
        """Answer with an error, then read on for a moment.

        A client that still sends would otherwise find the connection closed, and no answer.
        """
        unread = not self.ended and any(name in BODY for name, _ in scope["headers"])
        headers = {**refusal.headers, **({"Connection": "close"} if unread else {})}
        response = JSONResponse(self.visit.to_json(refusal), refusal.status, headers)
        start = {"type": "http.response.start", "status": refusal.status}
        await self.send(start | {"headers": response.raw_headers})
        body = b"" if scope["method"] == "HEAD" else bytes(response.body)
        await self._send({"type": "http.response.body", "body": body, "more_body": True})
        with suppress(TimeoutError):
            async with asyncio.timeout(LINGER):
                while not self.ended and self.visit.size < MOST_LINGER:
                    await self.receive()
        await self._send({"type": "http.response.body", "body": b""})
