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
    """How a score was computed, such as `bleu4|refs:5|tok:ptb|split:dev|n:1000|v:0.1.0`."""

    name: str  # of the score, such as `bleu4`
    fields: Mapping[str, str]  # in printed order

    @classmethod
    def build(cls, name: str, fields: Mapping[str, str | int | None]) -> Signature:
        """Build a signature from the fields that are not None.

        Raises:
            DataError: if a key holds ":", or the name, a key or a value holds "|" or is empty.
        """
        kept = {key: str(value) for key, value in fields.items() if value is not None}
        texts = [name, *kept, *kept.values()]
        if any("|" in text or not text for text in texts) or any(":" in key for key in kept):
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
        pairs = [field.partition(":")[::2] for field in fields]
        if not name or not all(key and value for key, value in pairs):
            raise DataError(f"not a signature (name|key:value|...): {excerpt(text)}")
        if len(dict(pairs)) != len(pairs):
            raise DataError(f"signature with a duplicate key: {excerpt(text)}")
        return cls(name, dict(pairs))

    def __str__(self) -> str:
        return "|".join([self.name, *(f"{key}:{value}" for key, value in self.fields.items())])

    def __getitem__(self, key: str) -> str:
        return self.fields[key]


def differences(a: Signature, b: Signature) -> dict[str, tuple[str, str]]:
    """Return key -> both values for each difference; "-" if missing; the name has key "name"."""
    first, second = ({"name": each.name, **each.fields} for each in (a, b))
    both = {key: (first.get(key, "-"), second.get(key, "-")) for key in first | second}
    return {key: values for key, values in both.items() if values[0] != values[1]}


def compatible(a: Signature, b: Signature) -> bool:
    """Return whether two scores are comparable: only search settings and version may differ."""
    return set(differences(a, b)) <= _FREE
