"""The signature of a score, such as `bleu4|refs:5|tok:ptb|split:dev|n:1000|v:0.1.0`.

Two scores are comparable if their signatures agree.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeAlias

from captioner.errors import DataError
from captioner.system.foreign import excerpt

Signature: TypeAlias = dict[str, str]
"""The fields of a signature; the name of the score has the key "name"."""

# Search settings and version describe the run. They may differ between comparable scores.
_FREE = frozenset({"decode", "v"})


def sign(name: str, fields: Mapping[str, str | int | None]) -> str:
    """Write a signature of the fields that are not None.

    Raises:
        DataError: if a key holds ":", or the name, a key or a value holds "|" or is empty.
    """
    kept = {key: str(value) for key, value in fields.items() if value is not None}
    texts = [name, *kept, *kept.values()]
    if any("|" in text or not text for text in texts) or any(":" in key for key in kept):
        raise DataError(
            f"signature of {excerpt(name)}: an empty text, '|', or ':' in a key: {excerpt(texts)}"
        )
    return "|".join([name, *(f"{key}:{value}" for key, value in kept.items())])


def read_signature(text: str) -> Signature:
    """Read a signature.

    Raises:
        DataError: if the text is not a signature.
    """
    name, *fields = text.strip().split("|")
    pairs = [("name", name), *(field.partition(":")[::2] for field in fields)]
    if not all(key and value for key, value in pairs):
        raise DataError(f"not a signature (name|key:value|...): {excerpt(text)}")
    if len(dict(pairs)) != len(pairs):
        raise DataError(f"signature with a duplicate key: {excerpt(text)}")
    return dict(pairs)


def joined(signatures: Iterable[str]) -> list[str]:
    """Write signatures with equal fields as one, such as `bleu1,bleu2|refs:5|tok:ptb`."""
    names: dict[str, list[str]] = {}
    for signature in signatures:
        name, _, fields = signature.partition("|")
        names.setdefault(fields, []).append(name)
    return [f"{','.join(group)}|{fields}" for fields, group in names.items()]


def differences(a: Signature, b: Signature) -> dict[str, tuple[str, str]]:
    """Return key -> both values for each difference; "-" if missing."""
    both = {key: (a.get(key, "-"), b.get(key, "-")) for key in a | b}
    return {key: values for key, values in both.items() if values[0] != values[1]}


def compatible(a: Signature, b: Signature) -> bool:
    """Return whether two scores are comparable: only search settings and version may differ."""
    return set(differences(a, b)) <= _FREE
