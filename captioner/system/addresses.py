"""Addresses in object storage, such as `s3://bucket/a.jpg`, and how they are shown.

Only names that the user typed, or that stand in a list of the user, are taken for addresses.
"""

from __future__ import annotations

import re
from urllib.parse import urlsplit

# Each scheme and the package that reads it, through fsspec. Other schemes of fsspec, such as
# `zip://` or `reference://`, and its chains with `::` would open files that nobody named.
PACKAGES = {
    "s3": "s3fs",
    "gs": "gcsfs",
    "az": "adlfs",
    "hf": "huggingface_hub",
    "http": "aiohttp",
    "https": "aiohttp",
    "hdfs": "pyarrow",
}
COMMAND = "pipe:"  # before a command that writes a tar stream, as in WebDataset; only if typed
# Stores that show an object only when it was put completely.
ATOMIC = ("s3", "gs", "az", "hf")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_IN_TEXT = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s'\"<>]+")
_SECRET = re.compile(
    r"x-(amz|goog|ms)-|sig|token|secret|passw|pwd|auth|cred|key|session|policy|^(sv|se|sp|sr|st|spr|ss|srt|skoid)$",
    re.IGNORECASE,
)
LONGEST_VALUE = 16  # characters of a parameter that is shown; a longer one may be a secret
HIDDEN = "..."


def scheme_of(name: str) -> str:
    """Return the scheme of a name, such as `s3`, in small letters; empty if it has none."""
    match = _SCHEME.match(name)
    return match[1].lower() if match else ""


def is_address(name: str) -> bool:
    """Whether a name is an address of a scheme that can be read."""
    return scheme_of(name) in PACKAGES and "::" not in name


def shown(address: str) -> str:
    """Return an address without user, password and secret parameters: for messages and outputs."""
    start, mark, query = address.partition("?")
    scheme, separator, rest = start.partition("://")
    host, slash, path = rest.partition("/")
    start = scheme + separator + host.rpartition("@")[2] + slash + path
    query, sharp, fragment = query.partition("#")
    parameters = [_shown_parameter(each) for each in re.split("[&;]", query)] if mark else []
    return start + mark + "&".join(parameters) + sharp + fragment


def _shown_parameter(parameter: str) -> str:
    name, is_set, value = parameter.partition("=")
    if is_set and (_SECRET.search(name) or len(value) > LONGEST_VALUE):
        return f"{name}={HIDDEN}"
    return HIDDEN if len(parameter) > 4 * LONGEST_VALUE else parameter


def without_secrets(text: str, address: str = "") -> str:
    """Return a message of a library without the secrets of the addresses in it.

    Args:
        text: of the message.
        address: what the message is about; its secrets are hidden wherever they stand.
    """
    text = _IN_TEXT.sub(lambda match: shown(match[0]), text)
    for secret in sorted(_secrets(address), key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    return text


def _secrets(address: str) -> set[str]:
    """Return the password and the secret values of an address, if they are not very short."""
    try:
        parts = urlsplit(address)
        found = {parts.password or ""}
    except ValueError:
        return set()
    for parameter in re.split("[&;]", parts.query):
        name, _, value = parameter.partition("=")
        if _shown_parameter(parameter) != parameter:
            found.add(value or name)
    return {secret for secret in found if len(secret) > 3}
