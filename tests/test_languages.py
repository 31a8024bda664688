"""Captions of any language: split into words, characters or pieces, and joined again."""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from captioner.captioning.records import Record
from captioner.captioning.wording import Wording, sentence
from captioner.captioning.writers import TextWriter
from captioner.errors import ConfigError, ModelError
from captioner.evaluation.report.word_marks import marks_of
from captioner.metrics import score_captions
from captioner.text import (
    CHARACTERS,
    PTB,
    UNICODE,
    Caption,
    Tokenizer,
    Vocabulary,
    Word,
    words_of,
)
from captioner.text.bpe import Bpe
from captioner.text.languages import TOKENIZERS, advice, is_latin, length_advice, scripts

SENTENCES = {
    "Arabic": ["كلبٌ بنيٌّ يركضُ على العشب الأخضر.", "طفلانِ يلعبان بالكرة، والشمسُ مشرقة!"],
    "Bengali": ["একটি কুকুর সবুজ ঘাসের উপর দৌড়াচ্ছে।", "দুটি শিশু বল নিয়ে খেলছে।"],
    "Burmese": ["ခွေးညိုတစ်ကောင်သည်မြက်ခင်းပေါ်တွင်ပြေးနေသည်။", "ကလေးနှစ်ယောက်ကစားနေကြသည်။"],
    "Chinese": ["一只棕色的狗在绿色的草地上奔跑。", "两个孩子在玩3个红色的球，天气很好！"],
    "English": ["A brown dog doesn't run on the green grass.", "Two children play with 3.5 balls!"],
    "Finnish": ["Ruskea koira juoksee vihreällä nurmikolla.", "Kaksi lasta leikkii pallolla."],
    "French": ["Un chien brun court dans l'herbe verte.", "Deux enfants jouent à l'école, ça va ?"],
    "German": ["Ein brauner Hund läuft über die grüne Straße.", "Zwei Kinder spielen mit Bällen!"],
    "Greek": ["Ένας καφέ σκύλος τρέχει στο γρασίδι.", "Δύο παιδιά παίζουν· ο ήλιος λάμπει."],
    "Hebrew": ["כלב חום רץ על הדשא הירוק.", "שני ילדים משחקים בכדור, והשמש זורחת!"],
    "Hindi": ["एक भूरा कुत्ता हरी घास पर दौड़ रहा है।", "दो बच्चे गेंद से खेल रहे हैं।"],
    "Japanese": [
        "茶色の犬が緑の芝生の上を走っている。",
        "二人の子供がボールで遊び、ケーキを食べる。",
    ],
    "Khmer": ["ឆ្កែពណ៌ត្នោតមួយកំពុងរត់លើស្មៅ។", "ក្មេងពីរនាក់កំពុងលេងបាល់។"],
    "Korean": ["갈색 개가 푸른 잔디밭 위를 달린다.", "두 아이가 공을 가지고 논다."],
    "Lao": ["ໝາສີນ້ຳຕານແລ່ນຢູ່ເທິງຫຍ້າ", "ເດັກນ້ອຍສອງຄົນຫຼິ້ນບານ"],
    "Persian": ["سگ قهوه‌ای روی چمن سبز می‌دود.", "دو کودک با توپ بازی می‌کنند؟"],
    "Russian": ["Коричневая собака бежит по зелёной траве.", "Двое детей играют в мяч — ёлка!"],
    "Thai": ["สุนัขสีน้ำตาลกำลังวิ่งบนสนามหญ้า", "เด็กสองคนเล่นลูกบอลในน้ำ"],
    "Turkish": ["Kahverengi bir köpek yeşil çimende koşuyor.", "İki çocuk top oynuyor."],
    "Ukrainian": ["Коричневий пес біжить по траві.", "Двоє дітей граються м’ячем у дворі!"],
    "Vietnamese": ["Một con chó nâu chạy trên bãi cỏ.", "Hai đứa trẻ đang chơi bóng!"],
}
EVERY = [sentence for sentences in SENTENCES.values() for sentence in sentences]
BPE = Bpe.train(EVERY * 3, 700)
ALL = (UNICODE, CHARACTERS, BPE)
CHINESE = (
    "一只棕色的狗在绿色的草地上奔跑",
    "两个孩子在玩3个红色的球",
    "一个人骑着iphone自行车 过马路",
)

# Marks, joiners, scripts with and without spaces, and all other characters.
TRICKY = st.sampled_from(
    list("  aбß İΣ'’.-_3กำ่日本カーがゞ한ក្បမြျ\u0301\u200c\u200d\u200b\u202e🐶🇫🇷<>▁%$")
)
TEXTS = st.text(st.one_of(TRICKY, st.characters()), max_size=20)


def bare(caption: str) -> str:
    """A caption up to case, punctuation and the way that accents are stored."""
    text = unicodedata.normalize("NFC", caption.lower().replace("’", "'"))
    inside = re.sub(r"(?<=\w)['.](?=\w)", lambda match: f"\0{ord(match[0])}\0", text)
    kept = "".join(" " if unicodedata.category(char)[0] == "P" else char for char in inside)
    text = re.sub("\0([0-9]+)\0", lambda match: chr(int(match[1])), kept)
    # Where two texts without spaces met at a comma, they close up.
    return " ".join(re.sub(r"(?<=[\u0e00-\u109f\u1780-\u17ff\u3040-\u9fff]) ", "", text).split())


@pytest.mark.parametrize("tokenizer", ALL, ids=lambda each: each.name)
@pytest.mark.parametrize("language", SENTENCES)
def test_a_sentence_comes_back_up_to_case_and_punctuation(
    language: str, tokenizer: Tokenizer
) -> None:
    for text in SENTENCES[language]:
        tokens = tokenizer.tokenize(text)
        assert tokenizer.detokenize(tokens) == bare(text)
        assert tokenizer.words_in(tokens) == tokenizer.words(text)
        assert words_of(tokenizer.name)(text) == tokenizer.words(text)


@pytest.mark.parametrize("tokenizer", ALL, ids=lambda each: each.name)
@given(text=TEXTS)
def test_a_written_caption_has_its_own_tokens(tokenizer: Tokenizer, text: str) -> None:
    tokens = tokenizer.tokenize(text)
    caption = tokenizer.detokenize(tokens)
    assert tokenizer.tokenize(caption) == tokens
    assert caption == " ".join(caption.split())
    assert tokenizer.words(caption) == tokenizer.words_in(tokens)
    Vocabulary.build([tokens], 1, tokenizer=tokenizer)  # accepts each as a word


@pytest.mark.parametrize(
    ("caption", "words"),
    [
        ("Привет, МИР!", "привет мир"),
        ("тёмно-красный", "тёмно красный"),
        ("can’t 32.3 feet", "can't 32.3 feet"),
        ("中文 and 3只", "中 文 and 3 只"),
        ("カタカナー", "カ タ カ ナ ー"),
        ("น้ำกำ", "น้ำ กำ"),
        ("မြန်မာ", "မြ န် မာ"),
        ("हिन्दी में", "हिन्दी में"),
        ("e\u0301te\u0301", "été"),
        ("ΣΚΎΛΟΣ", "σκύλος"),
        ("می‌رود", "می‌رود"),
        ("a\u202eb\u200bc\u00add", "ab cd"),
        ("🐶 👨\u200d👩\u200d👧", "🐶 👨\u200d👩\u200d👧"),
        ("( _a_ ) ... ؟،。", "a"),
        ("", ""),
    ],
)
def test_known_words_of_unicode(caption: str, words: str) -> None:
    assert UNICODE.tokenize(caption) == words.split()


@pytest.mark.parametrize(
    ("tokens", "caption"),
    [
        ("中 文 and 3 只 🐶", "中文and 3只🐶"),
        ("น้ำ กำ", "น้ำกำ"),
        ("красный круг", "красный круг"),
        ("한국 어", "한국 어"),
        ("ก ำ", "ก ำ"),
    ],
)
def test_written_form(tokens: str, caption: str) -> None:
    assert UNICODE.detokenize(tokens.split()) == caption


def test_characters_keep_their_marks_and_spaces() -> None:
    assert CHARACTERS.tokenize("Да, é น้ำ") == ["д", "а", "▁", "é", "น้ำ"]
    assert CHARACTERS.words("Да é") == ["д", "а", "é"]
    assert CHARACTERS.shown("▁") == " "


def test_pieces_are_of_bytes_and_show_text() -> None:
    pieces = BPE.tokenize("Собака!")
    assert pieces[0].startswith("Ġ")
    assert all(piece.isprintable() and piece.split() == [piece] for piece in pieces)
    assert BPE.shown("Ġdog") == "dog"
    assert BPE.shown("Ð") == r"\xd0"
    assert BPE.detokenize(["Ð"]) == "\ufffd"
    assert pickle.loads(pickle.dumps(BPE)) == BPE


def test_pieces_leave_no_word_unknown() -> None:
    vocabulary = Vocabulary.build([BPE.tokenize("a dog")], 5, tokenizer=BPE)
    assert vocabulary.unk_id not in vocabulary.encode_text("ещё ни разу не виденное слово 🐶")
    assert len(vocabulary) == 4 + len(BPE.pieces)


def test_pieces_do_not_depend_on_the_process() -> None:
    code = (
        "import sys, json; from captioner.text.bpe import Bpe;"
        "print(json.dumps(Bpe.train(json.loads(sys.argv[1]), 500).merges))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", code, json.dumps(EVERY)]
    outputs = {
        subprocess.run(
            command, check=True, capture_output=True, env={**environment, "PYTHONHASHSEED": seed}
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1


# Scores


def test_bleu_of_chinese_is_that_of_sacrebleu() -> None:
    sacrebleu = pytest.importorskip("sacrebleu")
    hypotheses = [
        "一只狗在绿色的草地上跑",
        "两个孩子在玩红色的球和3个气球",
        "一个人骑自行车 过iphone马路",
    ]
    references = [
        [CHINESE[0], "棕色的狗在草地上"],
        [CHINESE[1], "孩子在玩球"],
        [CHINESE[2], "有人过马路"],
    ]
    metric = sacrebleu.metrics.BLEU(tokenize="zh", smooth_method="none")
    expected = metric.corpus_score(
        hypotheses, [list(each) for each in zip(*references, strict=True)]
    ).score
    scores = score_captions(
        [*map(UNICODE.words, hypotheses)],
        [[UNICODE.words(text) for text in texts] for texts in references],
        metrics=["bleu"],
        tokenizer="unicode",
    )
    assert 0.1 < scores["bleu_4"].value < 0.9
    assert scores["bleu_4"].value == pytest.approx(expected / 100, abs=1e-6)
    assert "|tok:unicode|" in scores["bleu_4"].signature


@pytest.mark.parametrize("metric", ["meteor", "spice"])
@pytest.mark.parametrize(
    ("tokenizer", "caption", "reason"),
    [
        ("unicode", "a dog", "text.tokenizer is unicode"),
        ("ptb", "собака бежит", "most letters are not Latin"),
    ],
)
def test_english_metrics_refuse_other_languages(
    metric: str, tokenizer: str, caption: str, reason: str
) -> None:
    tokens = words_of(tokenizer)(caption)
    score = score_captions([tokens], [[tokens]], metrics=[metric], tokenizer=tokenizer)[metric]
    assert score.note == f"{metric.upper()} knows English only, and {reason}"
    assert "\n" not in str(score)


def test_an_unknown_tokeniser_is_refused() -> None:
    with pytest.raises(ConfigError, match="tokenizer: must be one of ptb, unicode"):
        words_of("words")


# Advice before training


def test_scripts_are_shares_of_letters() -> None:
    assert scripts(["Ein Hund", "12 !?"]) == {"Latin": 1.0}
    assert scripts(["да", "ab漢", "ー"]) == {"Cyrillic": 0.4, "Latin": 0.4, "Han": 0.2}
    assert scripts(["12 !?", ""]) == {}


def test_advice_names_the_setting() -> None:
    def found(captions: list[str]) -> str | None:
        return advice(captions, [len(PTB.tokenize(each)) for each in captions])

    english = ["a dog runs"] * 90
    assert found([*english, *["dog"] * 10]) is None
    single = found([*english, *["dog"] * 11])
    assert single is not None
    assert single.startswith("suggestion: 11% of the captions in train are one token")
    assert "--set text.tokenizer=unicode" in single
    assert "most letters in train are not Latin" in str(found(["красный круг"] * 3))
    assert "one token" in str(found([*CHINESE[:2]]))
    assert found(["ein grüner Hügel", "çok güzel"]) is None


def test_advice_on_length() -> None:
    assert length_advice([5] * 90 + [24] * 10, 24) is None
    assert str(length_advice([5] * 80 + [30] * 20, 24)).endswith("set decoding.max_length=31")
    assert is_latin([]) and is_latin(["123"]) and not is_latin(["日本"])


# The file


@pytest.mark.parametrize("tokenizer", (PTB, *ALL), ids=lambda each: each.name)
def test_a_vocabulary_keeps_its_tokeniser(tmp_path: Path, tokenizer: Tokenizer) -> None:
    tokens = [tokenizer.tokenize(sentence) for sentence in EVERY]
    vocabulary = Vocabulary.build(tokens, 1, tokenizer=tokenizer)
    vocabulary.save(tmp_path / "vocab.json")
    loaded = Vocabulary.load(tmp_path / "vocab.json")
    assert loaded == vocabulary
    assert loaded.tokenizer == tokenizer
    ids = loaded.encode_text(EVERY[0])
    assert loaded.tokenizer.detokenize(loaded.decode(ids)) == tokenizer.detokenize(tokens[0])
    written = json.loads((tmp_path / "vocab.json").read_text(encoding="utf-8"))
    assert written.get("tokenizer", "ptb") == tokenizer.name
    assert ("tokenizer" in written) == (tokenizer is not PTB)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ({"tokenizer": "words"}, "tokenizer must be one of ptb, unicode, characters"),
        ({"tokenizer": ["ptb"]}, "tokenizer must be one of"),
        ({"tokenizer": "bpe"}, "bpe with merges"),
        ({"tokenizer": "bpe", "merges": ["a b", "ab"]}, "merge 2 is not two known pieces: 'ab'"),
        ({"tokenizer": "bpe", "merges": ["ab c"]}, "merge 1 is not two known pieces"),
        ({"tokenizer": "bpe", "merges": [["a", "b"]]}, "merge 1 is not two known pieces"),
        ({"tokenizer": "bpe", "merges": ["a b"] * (2**16 + 1)}, "more than 65,536 merges"),
    ],
)
def test_a_vocabulary_file_of_an_unknown_tokeniser_is_refused(
    tmp_path: Path, content: dict[str, object], complaint: str
) -> None:
    path = tmp_path / "vocab.json"
    rest = {"min_count": 1, "specials": Vocabulary.specials, "words": {"a": 1}}
    path.write_text(json.dumps(rest | content), encoding="utf-8")
    with pytest.raises(ModelError, match=complaint):
        Vocabulary.load(path)


def test_every_name_of_the_setting_is_known() -> None:
    from captioner.config import TextConfig

    for name in TOKENIZERS:
        assert TextConfig(tokenizer=name).tokenizer == name
    with pytest.raises(ConfigError, match=r"text\.tokenizer"):
        TextConfig(tokenizer="words")


# Written out


def test_a_map_replaces_characters_of_scripts_without_spaces() -> None:
    wording = Wording(replaced={"红色": "深红色", "圆": "圈", "собака": "пёс", "น้ำ": "ทะเล"})
    assert wording("一个红色的圆和собака") == "一个深红色的圈和пёс"
    assert wording("สีน้ำตาล") == "สีทะเลตาล"
    assert wording("собаками") == "собаками"
    assert Wording(replaced={"น": "x"})("น้ำน") == "น้ำx"  # not without its mark


def test_a_sentence_ends_as_its_script_does() -> None:
    assert sentence("一个红色的圆") == "一个红色的圆。"
    assert sentence("красный круг") == "Красный круг."
    assert sentence("एक कुत्ता") == "एक कुत्ता।"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("caption", ["كلب يركض.", "כלב רץ."])
def test_a_right_to_left_caption_is_isolated_in_a_terminal_only(caption: str) -> None:
    record = Record("dog.jpg", (Caption(caption, -1.0, -0.5, True),) * 2)
    for file, shown in ((Terminal(), f"\u2068{caption}\u2069"), (io.StringIO(), caption)):
        with TextWriter(file, n_best=2) as writer:
            writer.write(record)
        assert file.getvalue() == f"dog.jpg\t{shown}\t-0.5000\n" * 2
    file = Terminal()
    with TextWriter(file) as writer:
        writer.write(Record("dog.jpg", (Caption("一只狗 бежит", -1.0, -0.5, True),)))
    assert file.getvalue() == "dog.jpg\t一只狗 бежит\n"


def test_the_report_marks_closed_up_words_and_parts_of_characters() -> None:
    words = tuple(Word(text, -0.1) for text in ("红", "色", r"\xe7", "的", "<eos>"))
    marks = marks_of(Caption("红色的", -1.0, -1.0, True, words))
    assert [(mark.gap, mark.text) for mark in marks] == [
        ("", "红"), ("", "色"), ("", r"\xe7"), ("", "的"), ("", ""),
    ]  # fmt: skip
