"""Who may use the server: the name it is called by, the page that calls, and the token."""

from __future__ import annotations

import hashlib
import hmac
import re
import socket
from collections.abc import Collection
from dataclasses import dataclass, field
from ipaddress import ip_address

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from captioner.errors import ConfigError
from captioner.serving.refusal import RefusedError
from captioner.system.foreign import excerpt, plain

LEAST = 8  # characters of a token
TOKEN = re.compile(r"[!-~]+")
HOST = re.compile(r"(?P<name>\[[0-9A-Fa-f:.]+\]|[\w.-]+)(?::\d{1,5})?", re.ASCII)
ORIGIN = re.compile(r"https?://[\w.\-:\[\]]+|null", re.ASCII)
ANY = "*"


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """Who may use the server.

    Attributes:
        token: what a request sends as `Authorization: Bearer TOKEN`; None: no token.
        hosts: names of the server, besides `localhost` and IP addresses.
        origins: origins of other pages that may call, such as `https://example.org`; `*`: all.
    """

    token: str | None = field(default=None, repr=False)
    hosts: Collection[str] = ()
    origins: Collection[str] = ()

    def __post_init__(self) -> None:
        if self.token is not None and not (
            len(self.token) >= LEAST and TOKEN.fullmatch(self.token)
        ):
            raise ConfigError(
                f"token: must be {LEAST} or more ASCII characters without spaces; make one with "
                f"`openssl rand -hex 16`"
            )
        for name in self.hosts:
            if not is_name(name):
                raise ConfigError(f"allow_host: must be a name, given {excerpt(name, 60)}")
        for origin in self.origins:
            if origin != ANY and not ORIGIN.fullmatch(origin):
                raise ConfigError(
                    f"allow_origin: must be as https://example.org, given {excerpt(origin, 60)}"
                )


def is_name(host: str) -> bool:
    """Whether a host is a name, without port, and no IPv6 address."""
    return ":" not in host and HOST.fullmatch(host) is not None


def check_reach(listener: socket.socket, access: Access, *, no_token: bool) -> None:
    """Check that a server that other machines reach has a token, or is meant to have none.

    Raises:
        ConfigError: if not.
    """
    if no_token and access.token is not None:
        raise ConfigError("no_token: a token is given too; leave one of the two out")
    address = listener.getsockname()[0]
    if access.token is None and not no_token and not ip_address(address).is_loopback:
        raise ConfigError(
            f"host {address}: other machines reach it, so set --token or $CAPTIONER_TOKEN; "
            f"--no-token lets everybody in"
        )


class Guard:
    """Refuses requests without access."""

    def __init__(self, app: ASGIApp, access: Access, public: Collection[str]):
        """Protect `app`; the paths in `public` need no token."""
        self.app, self.access, self.public = app, access, frozenset(public)
        self.names = {"localhost", *(name.lower() for name in access.hosts)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check one request."""
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            self._check_host(headers.get("host", ""))
            self._check_origin(headers)
            if scope["path"] not in self.public:
                self._check_token(headers.get("authorization", ""))
        await self.app(scope, receive, send)

    def _check_host(self, host: str) -> None:
        """Refuse a foreign name: its page may have been made to point here (DNS rebinding)."""
        found = HOST.fullmatch(host)
        name = found["name"].lower().rstrip(".") if found else ""
        if name not in self.names and not _is_address(name.strip("[]")):
            raise RefusedError(
                421,
                f"Host: {plain(host, 60) or 'none'} is no name of this server; see --allow-host",
            )

    def _check_origin(self, headers: Headers) -> None:
        """Refuse the requests of other pages."""
        origin = headers.get("origin")
        if origin is None or {origin, ANY} & {*self.access.origins}:
            return
        if origin.partition("://")[2].lower() != headers["host"].lower():
            raise RefusedError(
                403, f"Origin: {plain(origin, 60)} may not call this server; see --allow-origin"
            )

    def _check_token(self, given: str) -> None:
        if self.access.token is None:
            return
        scheme, _, token = given.partition(" ")
        if scheme.lower() != "bearer" or not _equal(token.strip(), self.access.token):
            what = "wrong token" if given else "no token"
            raise RefusedError(
                401,
                f"Authorization: {what}; send `Authorization: Bearer TOKEN`",
                {"WWW-Authenticate": "Bearer"},
            )


def _equal(given: str, token: str) -> bool:
    """Compare in a time that depends on neither."""
    digests = (hashlib.sha256(text.encode("utf-8", "replace")).digest() for text in (given, token))
    return hmac.compare_digest(*digests)


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True
