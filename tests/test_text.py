"""The tokeniser gives the COCO evaluation's tokens; the vocabulary is a stable, checked mapping."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from captioner.errors import ModelError
from captioner.system.foreign import excerpt
from captioner.text import PUNCTUATION, Vocabulary, detokenize, tokenize

SHARED = Path(os.environ.get("CAPTIONER_SHARED", Path(__file__).parents[2] / "shared"))
FLICKR8K = SHARED / "flickr8k"

# Characters that mean something to a tokeniser come up often, and so do all others.
TRICKY = st.sampled_from(list("abdlonstmv'.,-!?()[]\"/*+5 #$%&<>@=:;`’—iI"))
TEXTS = st.text(st.one_of(TRICKY, st.characters()), max_size=25)

# Right-hand sides are what the Java PTB tokeniser gave (checked below where Java is there).
KNOWN = {
    "A child in a pink dress .": "a child in a pink dress",
    "The man's hat, and the boys' toys": "the man 's hat and the boys toys",
    "It doesn't bark; they'll can't cannot": "it does n't bark they 'll ca n't can not",
    "shouldn't've": "should n't 've",
    "gimme gonna gotta wanna": "gim me gon na got ta wan na",
    "a dog. a cat runs": "a dog a cat runs",
    "in the U.S. at 5 p.m.": "in the u.s. at 5 p.m.",
    "Washington D.C.": "washington d.c.",
    "a St. Bernard and Mr. Smith": "a st. bernard and mr. smith",
    "a man ( with a hat ) [sic] {x}": "a man -lrb- with a hat -rrb- -lsb- sic -rsb- -lcb- x -rcb-",
    "a jersey (#7)": "a jersey -lrb- # 7 -rrb-",
    "slip 'n' slide n 'slide": "slip 'n' slide n slide",
    "rock'n'roll o'clock d'angelo ma'am": "rock 'n' roll o'clock d'angelo ma'am",
    "'its the '80s, 80's style": "its the '80s 80 's style",
    "an ant 's-eye-view": "an ant 's eye-view",
    "y'all ol' man 'tis 'em": "y' all ol' man 't is 'em",
    '" -ependent " faces': "ependent faces",
    "a t-shirt, 5-year-old -5 degrees": "a t-shirt 5-year-old -5 degrees",
    "hello--world a - b": "hello world a b",
    "RIF=ding sleds": "rif = ding sleds",
    "3.5 of 3,000 at 10:30 and 1/2 off 50%": "3.5 of 3,000 at 10:30 and 1/2 off 50 %",
    "black/white w/ a dog w/o hat": "black/white w / a dog w/o hat",
    "“hello” ‘world’ it’s … a—b – c": "hello world it 's a b c",
    "Café naïve ÀÉ": "café naïve àé",
    "a dog 🐶 runs 🐶🐶": "a dog runs",
    "a\x07b\u200bc d\u00a0e so\u00adft": "a b c d e soft",
    "½ cup €5 £5 20°C ♥": "1/2 cup $ 5 # 5 20 ° c ♥",
    "**bold** what?! wow!!!": "** bold ** what ?! wow !!!",
    "he said \"go\" ``now''": "he said go now",
    "": "",
    " \t\n": "",
    "... !": "",
}


@pytest.mark.parametrize(("caption", "tokens"), KNOWN.items())
def test_known_tokens(caption: str, tokens: str) -> None:
    assert tokenize(caption) == tokens.split()


@pytest.mark.parametrize("mark", ["/", "+", "/'"])
def test_a_chunk_without_end_is_split_like_a_short_one(mark: str) -> None:
    assert tokenize(mark * 2000) == tokenize(mark * 10) * 200


def test_a_chunk_that_is_no_word_is_cut() -> None:
    assert tokenize("w" * 2500) == ["w" * 1000, "w" * 1000, "w" * 500]


@given(TEXTS)
def test_a_token_tokenised_again_is_itself(text: str) -> None:
    tokens = tokenize(text)
    assert [tokenize(token) for token in tokens] == [[token] for token in tokens]
    assert not PUNCTUATION & set(tokens)
    assert all(token == token.lower() and token.split() == [token] for token in tokens)


@given(TEXTS)
def test_detokenising_loses_nothing(text: str) -> None:
    tokens = tokenize(text)
    assert tokenize(detokenize(tokens)) == tokens


@given(TEXTS, TEXTS)
def test_captions_side_by_side_do_not_disturb_each_other(left: str, right: str) -> None:
    # A final sigma looks at its neighbours, white space or not.
    left, right = left.lower(), right.lower()
    assert tokenize(left + " " + right) == tokenize(left) + tokenize(right)


@pytest.mark.parametrize(
    ("tokens", "caption"),
    [
        ("a man 's hat", "a man's hat"),
        ("it does n't bark", "it doesn't bark"),
        ("they 'd 've run", "they'd 've run"),
        ("a dog -lrb- or two -rrb- runs", "a dog (or two) runs"),
        ("gon na run", "gonna run"),
        ("can not run", "can not run"),
        ("5 's", "5 's"),
        ("'s", "'s"),
        ("", ""),
    ],
)
def test_detokenised_captions_read_well(tokens: str, caption: str) -> None:
    assert detokenize(tokens.split()) == caption


def test_importing_and_detokenising_do_not_import_nltk() -> None:
    code = (
        "import sys; from captioner.text import detokenize; detokenize(['a', \"'s\"]);"
        "sys.exit('nltk' in sys.modules or 'torch' in sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, "-c", code], check=False, env=environment)
    assert done.returncode == 0


# The real captions and the real tokeniser


def flickr8k_captions() -> list[tuple[str, str]]:
    path = FLICKR8K / "Flickr8k.token.txt"
    if not path.is_file():
        pytest.skip(f"no {path}; set CAPTIONER_SHARED to the folder that holds flickr8k/")
    lines = path.read_text(encoding="utf-8").split("\n")
    pairs = [line.split("\t", 1) for line in lines if line]
    return [(name.split("#")[0], caption) for name, caption in pairs]


def java_tokens(captions: list[str]) -> list[list[str]]:
    """Tokenise with the official wrapper around the official program."""
    module = pytest.importorskip("pycocoevalcap.tokenizer.ptbtokenizer")
    if shutil.which("java") is None:
        pytest.skip("no java on the PATH")
    tokenized = module.PTBTokenizer().tokenize(
        {i: [{"caption": caption}] for i, caption in enumerate(captions)}
    )
    return [tokenized[i][0].split() for i in range(len(captions))]


def test_known_tokens_are_those_of_java() -> None:
    # A caption of white space only shifts the lines of the official wrapper.
    captions = [caption for caption in KNOWN if caption.strip()]
    assert dict(zip(captions, java_tokens(captions), strict=True)) == {
        caption: KNOWN[caption].split() for caption in captions
    }


def documented_differences() -> dict[str, tuple[list[str], list[str]]]:
    """Read the table of docs/reference/metrics.md: caption to Java's tokens and ours."""
    page = Path(__file__).parents[1] / "docs" / "reference" / "metrics.md"
    table = (
        page.read_text(encoding="utf-8")
        .split("| kind | caption | Java PTB | here |")[1]
        .split("\n\n")[0]
    )
    rows = [line.strip("| ").split(" | ") for line in table.splitlines()[2:]]
    return {
        caption.strip("`"): (java.strip("`").split(), here.strip("`").split())
        for _, caption, java, here in rows
    }


def test_documented_differences_from_java_are_real() -> None:
    documented = documented_differences()
    assert len(documented) >= 20
    for caption, (java, here) in documented.items():
        assert tokenize(caption) == here != java
    assert java_tokens(list(documented)) == [java for java, _ in documented.values()]


@pytest.mark.data
def test_flickr8k_has_the_tokens_of_java() -> None:
    captions = [caption for _, caption in flickr8k_captions()]
    expected = java_tokens(captions)
    different = [
        (caption, tokens)
        for caption, tokens in zip(captions, expected, strict=True)
        if tokenize(caption) != tokens
    ]
    assert len(captions) >= 35_000
    assert different == []


@pytest.mark.data
def test_flickr8k_survives_detokenising() -> None:
    captions = [caption for _, caption in flickr8k_captions()]
    tokenized = [tokenize(caption) for caption in captions]
    assert all(tokenize(detokenize(tokens)) == tokens for tokens in tokenized)


@pytest.mark.data
def test_flickr8k_vocabulary_is_the_published_one() -> None:
    captions = flickr8k_captions()
    train = set((FLICKR8K / "Flickr_8k.trainImages.txt").read_text().split())
    tokens = [tokenize(caption) for name, caption in captions if name in train]
    assert len(tokens) == 30_000
    assert abs(len(Vocabulary.build(tokens, min_count=5).words) - 2539) <= 0.02 * 2539


# Vocabulary

CAPTIONS = [["a", "dog", "runs"], ["a", "cat", "runs"], ["a", "dog", "naps"], ["the", "dog"]]


def test_specials_come_first_then_words_by_count_and_alphabet() -> None:
    vocabulary = Vocabulary.build(CAPTIONS, min_count=2)
    assert vocabulary.words == ("a", "dog", "runs")
    assert vocabulary.counts == {"a": 3, "dog": 3, "runs": 2}
    assert len(vocabulary) == 7
    ids = (vocabulary.pad_id, vocabulary.bos_id, vocabulary.eos_id, vocabulary.unk_id)
    assert ids == (0, 1, 2, 3)
    assert vocabulary.encode(["<pad>", "<bos>", "<eos>", "<unk>"]) == [0, 1, 2, 3]


def test_encode_and_decode() -> None:
    vocabulary = Vocabulary.build(CAPTIONS, min_count=2)
    assert vocabulary.encode(["a", "purple", "dog"]) == [4, 3, 5]
    assert vocabulary.decode([1, 4, 3, 0, 5, 2, 4, 4]) == ["a", "<unk>", "dog"]
    assert "dog" in vocabulary
    assert "purple" not in vocabulary
    for token_id in (-1, 7):
        with pytest.raises(IndexError, match="outside the vocabulary"):
            vocabulary.decode([token_id])


@given(st.lists(st.lists(st.sampled_from("abcdefgh"), max_size=6), max_size=8), st.randoms())
def test_build_does_not_depend_on_order_and_round_trips(captions: list[list[str]], rng) -> None:
    vocabulary = Vocabulary.build(captions, min_count=2)
    shuffled = captions[:]
    rng.shuffle(shuffled)
    assert Vocabulary.build(shuffled, min_count=2) == vocabulary
    assert list(vocabulary.counts.values()) == sorted(vocabulary.counts.values(), reverse=True)
    for tokens in captions:
        expected = [token if token in vocabulary else "<unk>" for token in tokens]
        assert vocabulary.decode(vocabulary.encode(tokens)) == expected


def test_special_tokens_in_captions_are_no_words() -> None:
    vocabulary = Vocabulary.build([["<unk>", "<pad>", "a"]], min_count=1)
    assert vocabulary.words == ("a",)


def test_coverage() -> None:
    vocabulary = Vocabulary.build(CAPTIONS, min_count=2)
    assert vocabulary.coverage(CAPTIONS) == 8 / 11
    assert vocabulary.coverage([]) == 1.0


def test_common_words_are_two_in_a_hundred() -> None:
    counts = {"a": 50, "in": 2, "dog": 1}
    texts = [[word] * count for word, count in counts.items()]
    vocabulary = Vocabulary.build([*texts, [f"rare{i}" for i in range(47)]], min_count=1)
    assert vocabulary.decode(vocabulary.common_ids) == ["a", "in"]
    assert Vocabulary.build([], min_count=1).common_ids == ()


def test_vocabulary_is_immutable() -> None:
    vocabulary = Vocabulary.build(CAPTIONS, min_count=1)
    with pytest.raises(FrozenInstanceError):
        vocabulary.min_count = 3  # type: ignore[misc]


def test_save_and_load(tmp_path: Path) -> None:
    vocabulary = Vocabulary.build([["café", '"', "ein"], ["café"]], min_count=1)
    path = tmp_path / "vocab.json"
    vocabulary.save(path)
    assert Vocabulary.load(path) == vocabulary
    assert [entry.name for entry in tmp_path.iterdir()] == ["vocab.json"]
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content["words"] == {"café": 2, '"': 1, "ein": 1}
    assert content["min_count"] == 1
    assert '"café": 2' in path.read_text(encoding="utf-8")


GOOD = '{"min_count": 5, "specials": ["<pad>", "<bos>", "<eos>", "<unk>"], "words": {"a": 9}}'


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("not json", "Expecting value"),
        ("[]", "min_count, specials and words"),
        ('{"words": {}}', "min_count, specials and words"),
        (GOOD.replace("<eos>", "<end>"), "specials are"),
        (GOOD.replace('{"a": 9}', '["a"]'), "map each word to its count"),
        (GOOD.replace('{"a": 9}', '{" ": 9}'), "invalid word number 1: ' '"),
        (GOOD.replace('{"a": 9}', '{"a": 9, "a": 8}'), "duplicate word: a"),
        (GOOD.replace('{"a": 9}', '{"<unk>": 9}'), "duplicate word: <unk>"),
        (GOOD.replace("9", '"many"'), "whole number"),
        (GOOD.replace("5", "true"), "whole number"),
        (GOOD.replace("5", "-5"), "whole number"),
    ],
)
def test_load_says_what_is_wrong(tmp_path: Path, content: str, complaint: str) -> None:
    path = tmp_path / "vocab.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ModelError, match=complaint) as caught:
        Vocabulary.load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


HOSTILE_WORDS = [
    *(
        "",
        " ",
        "a b",
        "a\tb",
        "a\n",
        "\x1b[31mred",
        "a\0",
        "\x7f",
        "\x9b31m",
        "\x85",
        "\xa0",
        "\xad",
    ),
    *(
        "\u200b",
        "\u200f",
        "\u2028",
        "\u2029",
        "\u202e",
        "\u2066",
        "\u3000",
        "\ufeff",
        "\ud83d",
        "\udcff",
    ),
    "x" * 201,
]


@pytest.mark.parametrize("word", HOSTILE_WORDS)
def test_load_refuses_what_is_no_word_and_shows_where_it_stands(tmp_path: Path, word: str) -> None:
    path = tmp_path / "vocab.json"
    words = {"a": 1, "dog": 1, word: 1}
    content = {"min_count": 5, "specials": list(Vocabulary.specials), "words": words}
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ModelError, match=r"invalid word number 3") as caught:
        Vocabulary.load(path)
    assert str(caught.value).isprintable()
    assert excerpt(word, 100) in str(caught.value)
    with pytest.raises(ModelError, match=r"invalid word number 1"):
        Vocabulary({word: 1}, 1)


@given(st.lists(st.text(st.sampled_from("".join(HOSTILE_WORDS) + "ab'-=\\é犬"), max_size=300)))
def test_whatever_the_captions_hold_a_vocabulary_of_them_is_one_of_words(
    captions: list[str],
) -> None:
    tokens = [*map(tokenize, captions), ["x" * 5000], tokenize("y" * 5000)]
    words = Vocabulary.build(tokens, min_count=1).words
    assert all(word.isprintable() and word.split() == [word] for word in words)
    assert max(map(len, words), default=0) <= Vocabulary.longest


def test_load_names_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"gone\.json"):
        Vocabulary.load(tmp_path / "gone.json")
