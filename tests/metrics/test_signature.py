"""Signatures print as promised, read back, and tell scores apart."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from captioner.errors import DataError
from captioner.metrics import compatible, differences, read_signature
from captioner.metrics.signature import sign

EXAMPLE = (
    "bleu4|refs:5|tok:ptb|case:lc|smooth:none|ref_len:closest|decode:beam5,lp0.0|split:dev"
    "|n:1000|v:0.1.0"
)
PART = st.text(st.characters(exclude_characters="|:", exclude_categories=["Z", "C"]), min_size=1)


def test_build_and_print() -> None:
    fields = {
        "refs": 5,
        "tok": "ptb",
        "case": "lc",
        "smooth": "none",
        "ref_len": "closest",
        "decode": "beam5,lp0.0",
        "split": "dev",
        "n": 1000,
        "v": "0.1.0",
    }
    assert sign("bleu4", fields) == EXAMPLE


def test_fields_without_a_value_are_left_out() -> None:
    assert sign("cider", {"decode": None, "n": 3}) == "cider|n:3"


def test_parse() -> None:
    signature = read_signature(EXAMPLE)
    assert signature["name"] == "bleu4"
    assert signature["decode"] == "beam5,lp0.0"
    assert sign(signature.pop("name"), signature) == EXAMPLE
    assert read_signature("cider|split:a:b")["split"] == "a:b"


@given(PART, st.dictionaries(PART, PART))
def test_what_is_built_reads_back(name, fields) -> None:
    assert read_signature(sign(name, fields)) == {"name": name, **fields}


@pytest.mark.parametrize("text", ["", "|refs:5", "bleu4|refs", "bleu4|:5", "bleu4|a:", "b|a:1|a:2"])
def test_parse_refuses_what_is_no_signature(text: str) -> None:
    with pytest.raises(DataError, match="signature"):
        read_signature(text)


@pytest.mark.parametrize("fields", [{"split": "a|b"}, {"a:b": 1}, {"split": ""}, {"": 1}])
def test_build_refuses_what_could_not_be_read_back(fields) -> None:
    with pytest.raises(DataError, match="signature"):
        sign("bleu4", fields)


@pytest.mark.parametrize(
    ("change", "same_measure"),
    [
        (("", ""), True),
        (("beam5,lp0.0", "beam1"), True),
        (("v:0.1.0", "v:0.2.0"), True),
        (("|decode:beam5,lp0.0", ""), True),
        (("tok:ptb", "tok:none"), False),
        (("refs:5", "refs:1"), False),
        (("split:dev", "split:test"), False),
        (("|n:1000", "|n:999"), False),
        (("|smooth:none", ""), False),
        (("bleu4", "bleu3"), False),
    ],
)
def test_compatible(change: tuple[str, str], same_measure: bool) -> None:
    other = EXAMPLE.replace(*change) if change[0] else EXAMPLE
    example, changed = read_signature(EXAMPLE), read_signature(other)
    assert compatible(example, changed) is same_measure
    assert compatible(changed, example) is same_measure


def test_differences_name_both_values() -> None:
    other = EXAMPLE.replace("bleu4", "bleu1").replace("refs:5", "refs:1").replace("|tok:ptb", "")
    example = read_signature(EXAMPLE)
    assert differences(example, read_signature(other + "|extra:1")) == {
        "name": ("bleu4", "bleu1"),
        "refs": ("5", "1"),
        "tok": ("ptb", "-"),
        "extra": ("-", "1"),
    }
    assert differences(example, example) == {}
