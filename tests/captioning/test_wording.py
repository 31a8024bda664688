"""How captions are written out: style, map and template, and in which files."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from hypothesis import assume, given
from hypothesis import strategies as st

from captioner.captioner import Captioner
from captioner.captioning.wording import CAPTION, Wording, read_map, sentence
from captioner.cli import main
from captioner.errors import ConfigError, DataError
from captioner.text import detokenize, tokenize

import toys

SENTENCES = [
    ("a dog runs through the grass", "A dog runs through the grass."),
    ("the man 's dog does n't bark", "The man's dog doesn't bark."),
    ("the dogs ' bowl , ( full )", "The dogs' bowl, (full)."),
    ("a sign says `` stop ''", 'A sign says "stop".'),
    ('a sign says " stop . "', 'A sign says "stop."'),
    ("“hello” he says", "“Hello” he says."),
    ("3 dogs run", "3 dogs run."),
    ("a dog .", "A dog."),
    ("is it a dog?", "Is it a dog?"),
    ("élan vital", "Élan vital."),
    ("e\u0301lan", "E\u0301lan."),
    ("собака бежит", "Собака бежит."),
    ("ǆep", "ǅep."),  # a letter of its own for the first place
    ("ßtraße", "ßtraße."),  # has no single capital
    ("ადამიანი", "ადამიანი."),  # its capitals are for headlines
    ("كلب يجري", "كلب يجري."),
    ("一只狗在草地上跑", "一只狗在草地上跑。"),
    ("犬がいる", "犬がいる。"),
    ("एक कुत्ता दौड़ता है", "एक कुत्ता दौड़ता है।"),
    ("カメラ", "カメラ。"),
    ("একটি কুকুর", "একটি কুকুর।"),
    ("ਇੱਕ ਕੁੱਤਾ", "ਇੱਕ ਕੁੱਤਾ।"),
    ("ଗୋଟିଏ କୁକୁର", "ଗୋଟିଏ କୁକୁର।"),
    ("սև շուն", "Սև շուն։"),
    ("ውሻ ይሮጣል", "ውሻ ይሮጣል።"),
    ("ခွေးပြေး", "ခွေးပြေး။"),
    ("ឆ្កែរត់", "ឆ្កែរត់។"),
    ("สุนัขวิ่ง", "สุนัขวิ่ง"),  # has no full stop
    ("ໝາແລ່ນ", "ໝາແລ່ນ"),
    ("ısı", "ısı."),  # the capital of another letter
    ("a big X", "A big X."),
    ("a dog.X", "A dog.X."),  # not what may follow a full stop
    ("", ""),
    ("  ", ""),
    ("...", "..."),
    ("🦊", "🦊"),
    ("a 🦊", "A 🦊."),
]
# Letters, marks, what is closed up, what ends a sentence.
WORDS = st.sampled_from(
    ["a", "dog", "'s", "n't", "'", "''", "``", '"', ",", ".", "!", "(", ")", "[", "élan", "ǆ", "狗"]
) | st.sampled_from(["है", "كلب", "3", "🦊", "t-shirt", "...", "”", "s", "ß"])
ANY = st.one_of(st.text(), st.lists(WORDS).map(" ".join))


@pytest.mark.parametrize(("caption", "expected"), SENTENCES)
def test_a_sentence_has_a_capital_a_full_stop_and_no_needless_space(
    caption: str, expected: str
) -> None:
    assert sentence(caption) == expected


def test_a_sentence_is_made_of_text() -> None:
    with pytest.raises(ConfigError, match=r"^caption: must be str, given 3"):
        sentence(3)  # type: ignore[arg-type]


@given(ANY)
def test_a_sentence_stays_as_it_is(caption: str) -> None:
    once = sentence(caption)
    assert sentence(once) == once


@given(st.lists(st.sampled_from(["a", "dog", "'s", "n't", "-lrb-", "-rrb-", "élan", "runs", "on"])))
def test_a_sentence_scores_as_the_caption(tokens: list[str]) -> None:
    caption = detokenize(tokens)
    assume(tokenize(caption) == tokens)
    assume(not tokens or len(tokens[-1]) > 1)  # "plan b." keeps its full stop
    assert tokenize(sentence(caption)) == tokens


def replaced(text: str, **words: str) -> str:
    return Wording(replaced={name.replace("_", " "): to for name, to in words.items()})(text)


def test_a_map_replaces_whole_words_and_the_longest_phrase() -> None:
    assert replaced("a woman and a Man", man="person") == "a woman and a person"
    assert replaced("the man's man-made t-shirt", man="x", shirt="y") == "the x's man-made t-shirt"
    assert replaced("a dog  house", dog="cat", dog_house="kennel") == "a kennel"
    assert replaced("a dog house", dog="animal", dog_house="hut", dog_house_door="x") == "a hut"
    assert replaced("dog dog house dog dog", dog="x", dog_house="y") == "x y x x"
    assert replaced("dog dog", dog="x", dog_dog="y") == "y"
    assert replaced("the man's man 's", **{"man's": "x"}) == "the x man 's"
    assert replaced("the man's man 's", **{"man_'s": "x"}) == "the man's x"
    assert replaced("dog houses", dog="cat", dog_house="kennel") == "cat houses"
    assert replaced("a cat and a dog", cat="dog", dog="cat") == "a dog and a cat"
    assert replaced("a very big dog", very="") == "a big dog"
    assert replaced("the man's", **{"'s": " of"}) == "the man of"
    assert replaced("किताब कि", **{"कि": "x"}) == "किताब x"
    assert replaced("a.b a*b", **{"a*b": r"\1"}) == r"a.b \1"


@given(st.lists(st.text(min_size=1), min_size=1, max_size=4, unique_by=str.lower), ANY)
def test_a_map_of_words_that_do_not_occur_changes_nothing(phrases: list[str], text: str) -> None:
    words = [word for phrase in phrases for word in phrase.lower().split()]
    assume(words)
    text = " ".join(text.split())
    known = {phrase: "x" for each in phrases if (phrase := " ".join(each.lower().split()))}
    written = Wording(replaced=known)(text)
    if not any(word.casefold() in text.casefold() for word in words):
        assert written == text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"dog\tcat\nno tab\n", ":2: no tab; write FROM, a tab, and TO, given 'no tab'"),
        (b"\n\tcat\n", ":2: nothing to replace before the tab"),
        (b"dog\tcat\nDog\tfox\n", ":2: line 1 replaces dog already"),
        (b"dog\tcat\tfox\n", ":1: must be two columns of UTF-8 text; it holds '\\t'"),
        (b"dog\tcat\nd\xff\tcat\n", ":2: must be two columns of UTF-8 text; it holds '\\udcff'"),
        (b"dog\t" + b"x" * 20_000, ":1: more than 10,000 characters"),
        (b"\n\n", ": nothing to replace; write lines of FROM, a tab, and TO"),
        (b"\xff\xfed\0\n\0", ":1: no tab; write FROM, a tab, and TO, given 'd'"),
    ],
)
def test_errors_of_a_map_name_file_and_line(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "fixes.tsv"
    path.write_bytes(content)
    with pytest.raises(DataError) as error:
        read_map(path)
    assert str(error.value) == f"{path}{message}"


def test_a_map_is_read_with_bom_and_any_line_end(tmp_path: Path) -> None:
    path = tmp_path / "fixes.tsv"
    path.write_bytes("\ufeffA  Dog \t the cat\r\n\r\nvery\t\nFOX\tX\r\n".encode())
    assert read_map(path) == {"a dog": "the cat", "very": "", "fox": "X"}


def test_the_longest_line_and_template_are_allowed(tmp_path: Path) -> None:
    path = tmp_path / "fixes.tsv"
    path.write_text("dog\t" + "x" * 9_996)
    assert read_map(path) == {"dog": "x" * 9_996}
    assert Wording(template="x" * 9_991 + CAPTION)("") == "x" * 9_991


@pytest.mark.parametrize(
    "template",
    ["", "sks style", "{captions}", "a\n{caption}", "\ud800{caption}", "x" * 10_000 + "{caption}"],
)
def test_a_template_is_one_line_with_a_caption(template: str) -> None:
    with pytest.raises(ConfigError, match=r"--template: must .*, given '") as error:
        Wording(template=template)
    assert "\n" not in str(error.value)


@given(st.text(), ANY)
def test_a_template_is_taken_to_the_letter(around: str, text: str) -> None:
    try:
        wording = Wording(template=f"{around}{CAPTION}{{0}}")
    except ConfigError:
        assume(False)
    assume(CAPTION not in around)
    assert wording(text) == f"{around}{text}{{0}}"


def test_a_caption_gets_the_map_then_the_style_then_the_template() -> None:
    wording = Wording("sentence", {"dog": "cat"}, "sks, {caption}!")
    assert wording("a dog 's ball") == "sks, A cat's ball.!"


def test_wordings_differ_in_their_keys() -> None:
    every = [
        *(Wording(), Wording("sentence"), Wording(template="x{caption}")),
        *(Wording(replaced={"a": "b"}), Wording(replaced={"a": "c"})),
    ]
    assert len({wording.key for wording in every}) == len(every)
    assert all(len(wording.key) == 32 for wording in every[1:])
    assert Wording().key == Wording("plain", {}, CAPTION).key == ""
    one, two = {"a": "b", "c": "d"}, {"c": "d", "a": "b"}
    assert Wording(replaced=one).key == Wording(replaced=two).key


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wording")
    toys.captioner(toys.encoder()).save(folder / "model")
    for colour in ("red", "blue"):
        toys.draw(folder / "pictures" / f"{colour}.png", colour)
    return folder


def run(home: Path, *words: str) -> Result:
    with toys.inside(home):
        return CliRunner().invoke(main, ["caption", "pictures", "--model", "model", *words])


def plain(home: Path) -> dict[str, str]:
    return dict(line.split("\t") for line in run(home).stdout.splitlines())


def test_every_format_writes_the_wording(home: Path) -> None:
    words = ("--style", "sentence", "--template", "sks, {caption}")
    expected = {name: f"sks, {sentence(text)}" for name, text in plain(home).items()}
    assert dict(line.split("\t") for line in run(home, *words).stdout.splitlines()) == expected
    rows = run(home, *words, "--format", "jsonl", "--n-best", "2").stdout.splitlines()
    for row in map(json.loads, rows):
        assert row["caption"] == expected[row["file_name"]] == row["n_best"][0]["caption"]
        second = row["n_best"][1]["caption"].removeprefix("sks, ")
        assert second == sentence(second) != row["n_best"][1]["caption"]
    table = csv.DictReader(run(home, *words, "--format", "csv").stdout.splitlines())
    assert {row["file_name"]: row["caption"] for row in table} == expected
    coco = json.loads(run(home, *words, "--format", "coco").stdout)
    assert [row["caption"] for row in coco] == [expected[name] for name in sorted(expected)]
    assert run(home, *words, "--format", "txt").exit_code == 0
    for name, text in expected.items():
        assert (home / name).with_suffix(".txt").read_text() == f"{text}\n"


def test_a_job_writes_another_wording_without_the_model(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(home, "--output", "out.jsonl").exit_code == 0
    before = (home / "out.jsonl").read_text()
    monkeypatch.setattr(Captioner, "load", None)
    done = run(home, "--output", "out.jsonl", "--style", "sentence")
    assert done.exit_code == 0, done.output
    rows = [json.loads(line)["caption"] for line in before.splitlines()]
    now = [json.loads(line)["caption"] for line in (home / "out.jsonl").read_text().splitlines()]
    assert now == [*map(sentence, rows)]
    assert run(home, "--output", "out.jsonl").exit_code == 0
    assert (home / "out.jsonl").read_text() == before


def test_a_bad_wording_is_one_line(home: Path) -> None:
    (home / "fixes.tsv").write_text("dog\n")
    for words, code, message in (
        (("--map", "fixes.tsv"), 1, "fixes.tsv:1: no tab"),
        (("--map", "nowhere.tsv"), 1, "nowhere.tsv: cannot be read: No such file"),
        (("--map", "pictures"), 1, "pictures: cannot be read: Is a directory"),
        (("--template", "sks"), 2, "--template: must contain {caption}"),
    ):
        done = run(home, *words)
        assert (done.exit_code, done.stdout) == (code, "")
        assert message in done.stderr
        assert done.stderr.count("\n") == 1
