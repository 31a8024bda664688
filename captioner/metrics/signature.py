"""The signature of a score: everything that must be equal before two numbers are compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from captioner.errors import DataError
from captioner.system.foreign import excerpt

# How captions were searched for and which release scored them describe the run, not the score.
_FREE = frozenset({"decode", "v"})


@dataclass(frozen=True)
class Signature:
    """A score's name and how it was made, such as `bleu4|refs:5|tok:ptb|split:dev|n:1000|v:0.1.0`.

    Args:
        name: the score, for example `bleu4`.
        fields: pairs of key and value, in the order they are printed.
    """

    name: str
    fields: tuple[tuple[str, str], ...]

    @classmethod
    def build(cls, name: str, fields: Mapping[str, str | int | None]) -> Signature:
        """Make a signature of the fields that are not None.

        Raises:
            DataError: if a key holds ":" or any part holds "|" or is empty.
        """
        kept = tuple((key, str(value)) for key, value in fields.items() if value is not None)
        parts = [name, *(part for pair in kept for part in pair)]
        if any("|" in part or not part for part in parts) or any(":" in key for key, _ in kept):
            raise DataError(
                f"signature of {excerpt(name)}: empty part, or '|' or ':' in one: {excerpt(parts)}"
            )
        return cls(name, kept)

    @classmethod
    def parse(cls, text: str) -> Signature:
        """Read what `str` wrote.

        Raises:
            DataError: if the text is not a signature.
        """
        name, *parts = text.strip().split("|")
        pairs = [part.partition(":") for part in parts]
        keys = [key for key, _, _ in pairs]
        if not name or not all(key and value for key, _, value in pairs):
            raise DataError(f"not a signature (name|key:value|...): {excerpt(text)}")
        if len(set(keys)) != len(keys):
            raise DataError(f"signature names a key twice: {excerpt(text)}")
        return cls(name, tuple((key, value) for key, _, value in pairs))

    def __str__(self) -> str:
        return "|".join([self.name, *(f"{key}:{value}" for key, value in self.fields)])

    def __getitem__(self, key: str) -> str:
        return dict(self.fields)[key]


def differences(a: Signature | str, b: Signature | str) -> dict[str, tuple[str, str]]:
    """Return what differs: key to both values, "-" for a missing one; the name's key is "name"."""
    first, second = _fields(a), _fields(b)
    keys = [*first, *(key for key in second if key not in first)]
    both = {key: (first.get(key, "-"), second.get(key, "-")) for key in keys}
    return {key: values for key, values in both.items() if values[0] != values[1]}


def compatible(a: Signature | str, b: Signature | str) -> bool:
    """Say whether two scores measure the same thing: they differ in decoding or release at most."""
    return set(differences(a, b)) <= _FREE


def _fields(signature: Signature | str) -> dict[str, str]:
    if isinstance(signature, str):
        signature = Signature.parse(signature)
    return {"name": signature.name, **dict(signature.fields)}
