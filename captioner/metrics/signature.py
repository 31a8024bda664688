"""The signature of a score: two scores are comparable if their signatures agree."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from captioner.errors import DataError
from captioner.system.foreign import excerpt

# Search settings and version describe the run. They may differ between comparable scores.
_FREE = frozenset({"decode", "v"})


@dataclass(frozen=True)
class Signature:
    """How a score was computed, such as `bleu4|refs:5|tok:ptb|split:dev|n:1000|v:0.1.0`.

    Args:
        name: name of the score, for example `bleu4`.
        fields: (key, value) pairs in printed order.
    """

    name: str
    fields: tuple[tuple[str, str], ...]

    @classmethod
    def build(cls, name: str, fields: Mapping[str, str | int | None]) -> Signature:
        """Build a signature from the fields that are not None.

        Raises:
            DataError: if a key holds ":", or the name, a key or a value holds "|" or is empty.
        """
        kept = tuple((key, str(value)) for key, value in fields.items() if value is not None)
        texts = [name, *(text for pair in kept for text in pair)]
        if any("|" in text or not text for text in texts) or any(":" in key for key, _ in kept):
            raise DataError(
                f"signature of {excerpt(name)}: an empty text, '|', or ':' in a key: "
                f"{excerpt(texts)}"
            )
        return cls(name, kept)

    @classmethod
    def parse(cls, text: str) -> Signature:
        """Parse the text that `str` returns.

        Raises:
            DataError: if the text is not a signature.
        """
        name, *fields = text.strip().split("|")
        pairs = [field.partition(":") for field in fields]
        keys = [key for key, _, _ in pairs]
        if not name or not all(key and value for key, _, value in pairs):
            raise DataError(f"not a signature (name|key:value|...): {excerpt(text)}")
        if len(set(keys)) != len(keys):
            raise DataError(f"signature with a duplicate key: {excerpt(text)}")
        return cls(name, tuple((key, value) for key, _, value in pairs))

    def __str__(self) -> str:
        return "|".join([self.name, *(f"{key}:{value}" for key, value in self.fields)])

    def __getitem__(self, key: str) -> str:
        return dict(self.fields)[key]


def differences(a: Signature | str, b: Signature | str) -> dict[str, tuple[str, str]]:
    """Return key -> both values for each difference; "-" if missing; the name has key "name"."""
    first, second = _fields(a), _fields(b)
    keys = [*first, *(key for key in second if key not in first)]
    both = {key: (first.get(key, "-"), second.get(key, "-")) for key in keys}
    return {key: values for key, values in both.items() if values[0] != values[1]}


def compatible(a: Signature | str, b: Signature | str) -> bool:
    """Return whether two scores are comparable: only search settings and version may differ."""
    return set(differences(a, b)) <= _FREE


def _fields(signature: Signature | str) -> dict[str, str]:
    if isinstance(signature, str):
        signature = Signature.parse(signature)
    return {"name": signature.name, **dict(signature.fields)}
