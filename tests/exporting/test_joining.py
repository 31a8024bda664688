"""The searches of an export join words as the tokeniser does, in Python and JavaScript."""

import itertools
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

import captioner.exporting
from captioner.exporting.joining import joining
from captioner.text import CHARACTERS, PTB, UNICODE, Vocabulary
from captioner.text.bpe import Bpe

README = Path(captioner.exporting.__file__).with_name("README.md").read_text(encoding="utf-8")
CAPTIONS = {
    "Chinese": "一只棕色的狗在绿色的草地上奔跑",
    "Japanese": "二人の子供がボールで遊び、ケーキを食べる",
    "Thai": "สุนัขสีน้ำตาลกำลังวิ่งในน้ำ",
    "Russian": "Двое детей играют в мяч 2 года",
    "mixed": "一只 dog 在 iPhone 上 wifi 很好 собака",
    "digits": "3个孩子在玩 2 个球 3.5 米 no 7",
    "English": "the man's dogs don't (yet) bark, they're gonna [wanna] run at 5 o'clock",
}
TOKENIZERS = {
    "unicode": UNICODE,
    "characters": CHARACTERS,
    "ptb": PTB,
    "bpe": Bpe(("Ġ d", "o g", "Ġd og")),
}


def sequences(tokenizer):
    """A vocabulary and ids of captions: as written, backwards, and all pairs of their words."""
    pytest.importorskip("tokenizers")
    captions = [tokenizer.tokenize(caption) for caption in CAPTIONS.values()]
    strange = [["ำ", "ﾞ", "犬", "°c", "犬a"]]  # no tokeniser writes them so
    words = Vocabulary.build(
        captions + strange * (tokenizer is UNICODE), min_count=1, tokenizer=tokenizer
    )
    ids = [words.encode(caption) for caption in captions]
    pairs = [[*pair] for pair in itertools.product(range(4, len(words)), repeat=2)]
    return words, [*ids, *(each[::-1] for each in ids), *pairs[:: 1 + len(pairs) // 20000]]


def written(words, ids):
    return [words.tokenizer.detokenize(words.decode(each)) for each in ids]


def python(about, ids):
    [code] = re.findall(r"^def text\(ids\):\n.*?\n\n", README, re.M | re.S)
    names = {"about": about}
    exec(code, names)
    return [names["text"](each) for each in ids]


def javascript(about, ids, folder):
    [code] = re.findall(r"^export (function textOf.*?^}\n)", README, re.M | re.S)
    (folder / "given.json").write_text(json.dumps([about, ids]), encoding="utf-8")
    script = (
        f"{code}const [about, all] = JSON.parse(require('fs').readFileSync('given.json'));"
        "console.log(JSON.stringify(all.map((ids) => textOf(ids, about))));"
    )
    (folder / "join.cjs").write_text(script, encoding="utf-8")
    done = subprocess.run(["node", "join.cjs"], cwd=folder, capture_output=True, check=True)
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_words_are_joined_as_the_tokeniser_joins_them(name, tmp_path):
    words, ids = sequences(TOKENIZERS[name])
    about = {"bos_id": words.bos_id, **joining(words)._asdict()}
    assert python(about, ids) == written(words, ids)
    if not shutil.which("node"):
        pytest.skip("node is not installed")
    assert javascript(about, ids, tmp_path) == written(words, ids)


def test_known_captions():
    for name, caption, text in (
        ("unicode", "一只 dog 在 3 个 iPhone 上", "一只dog在3个iphone上"),
        ("unicode", "Собака бежит", "собака бежит"),
        ("ptb", "The man's dog doesn't (yet) bark", "the man's dog doesn't (yet) bark"),
        ("characters", "two dogs 狗", "two dogs狗"),
        ("bpe", "two dogs 狗", "two dogs狗"),
    ):
        tokenizer = TOKENIZERS[name]
        words = Vocabulary.build([tokenizer.tokenize(caption)], min_count=1, tokenizer=tokenizer)
        about = {"bos_id": words.bos_id, **joining(words)._asdict()}
        assert python(about, [words.encode_text(caption)]) == [text]
