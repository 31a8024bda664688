"""What is written into a report, looked at without a browser."""

import base64
import hashlib
import html
import io
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from captioner.data.dataset import Example
from captioner.evaluation.report import write_report
from captioner.evaluation.report.findings import find, repeats
from captioner.images.thumbnails import THUMBNAIL
from captioner.page.charts import Line, length_chart, line_chart

import toys
from report_toys import caption, evaluation, model_folder, vocabulary

HOSTILE = [
    "</script><script>alert(1)</script>",
    "<!--<script>",
    "\"'><img src=x onerror=alert(1)>",
    "a\u2028b\u2029c & d &lt;",
    "]]>{{ 7 * 7 }}{% raw %}",
    "\u202egnihsrever",
]


class Reader(HTMLParser):
    """What a browser takes from the page: elements, and the text of scripts by their id."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.blocks, self.inside, self.text = [], {}, None, []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.elements.append((tag, attributes))
        self.inside = (tag, attributes.get("id")) if tag in ("script", "style") else None

    def handle_endtag(self, tag):
        self.inside = None

    def handle_data(self, data):
        if self.inside:
            self.blocks[self.inside] = self.blocks.get(self.inside, "") + data
        else:
            self.text.append(data)


def examples(folder, count=3, references=("a red square", "a square"), names=None):
    names = names or [f"{i}.png" for i in range(count)]
    colours = list(toys.COLOURS)
    paths = [toys.draw(folder / name, colours[i % 6]) for i, name in enumerate(names)]
    return [Example(path, tuple(references), "dev", path.name) for path in paths]


def report(result, tmp_path, **options):
    options.setdefault("model", tmp_path / "model")
    return write_report(result, vocabulary(result), **options).read_text(encoding="utf-8")


@pytest.fixture
def plain(tmp_path):
    captions = [[caption("a red square", -1.25), caption("a square", -2.5)]] * 2
    captions.append([caption("square in in", -7.0, finished=False)])
    return evaluation(tmp_path, examples(tmp_path), captions, train=["A red square."])


def test_the_file_stands_alone(plain, tmp_path):
    text = report(plain, tmp_path)
    page = Reader(text)
    assert not [
        (tag, attributes)
        for tag, attributes in page.elements
        for name, value in attributes.items()
        if name in ("src", "srcset", "data", "action", "style")
        or name.startswith("on")
        or (name == "href" and not value.startswith("#"))
    ]
    assert not {"link", "iframe", "object", "base"} & {tag for tag, _ in page.elements}
    assert "url(" not in page.blocks["style", None]
    assert "@import" not in page.blocks["style", None]
    assert not re.findall(r"https?://|innerHTML|insertAdjacent|document\.write|eval\(", text)


def test_the_policy_allows_this_script_and_this_style_and_nothing_else(plain, tmp_path):
    page = Reader(report(plain, tmp_path))
    policy = next(a["content"] for t, a in page.elements if t == "meta" and "http-equiv" in a)
    rules = dict(rule.split(maxsplit=1) for rule in policy.split("; "))

    def fingerprint(kind):
        digest = hashlib.sha256(page.blocks[kind, None].encode()).digest()
        return f"'sha256-{base64.b64encode(digest).decode()}'"

    assert rules == {
        "default-src": "'none'",
        "img-src": "data:",
        "style-src": fingerprint("style"),
        "script-src": fingerprint("script"),
        "base-uri": "'none'",
        "form-action": "'none'",
    }


def test_hostile_captions_and_names_are_data(tmp_path):
    names = ["<b>bold</b>.png".replace("/", "_"), '"><script>.png', "a&amp;'.png"]
    shown = examples(tmp_path, references=HOSTILE, names=names)
    captions = [[caption(text), caption(HOSTILE[0])] for text in HOSTILE[:3]]
    captions[1] = captions[0]  # so that it is also listed among the repeated captions
    result = evaluation(tmp_path, shown, captions, train=HOSTILE)
    text = report(result, tmp_path)
    page = Reader(text)
    rows = json.loads(page.blocks["script", "data"])["rows"]
    assert [row["name"] for row in rows] == names
    assert [row["captions"][0][0] for row in rows] == [HOSTILE[0], HOSTILE[0], HOSTILE[2]]
    assert all(row["references"] == HOSTILE for row in rows)
    assert HOSTILE[0] in "".join(page.text)
    assert html.escape(HOSTILE[0]) in text
    harmless = Reader(
        report(evaluation(tmp_path / "b", examples(tmp_path), captions[:1] * 3), tmp_path)
    )
    kinds = {tag for tag, _ in page.elements}
    assert kinds == {tag for tag, _ in harmless.elements}
    assert not set(page.blocks["script", "data"]) & set("<>&'\u2028\u2029")


def test_a_name_that_is_not_utf8_is_no_error(tmp_path):
    shown = examples(tmp_path)
    odd = Example(tmp_path / "caf\udce9.png", shown[0].captions, "dev", "odd")
    result = evaluation(tmp_path, [*shown[1:], odd], [[caption("a")]] * 3)
    page = Reader(report(result, tmp_path, model=tmp_path / "m\udce9"))
    assert json.loads(page.blocks["script", "data"])["rows"][2]["name"] == "caf\udce9.png"


def test_numbers_are_those_of_the_scores(plain, tmp_path):
    page = Reader(report(plain, tmp_path))
    shown = " ".join("".join(page.text).split())
    for score in plain.scores.values():
        low, high = score.interval
        assert f"{score.value:.3f} ± {(high - low) / 2:.3f} (95%)" in shown
        assert f"{low:.3f} to {high:.3f}" in shown
        name, _, fields = score.signature.partition("|")
        assert shown.count(f"|{fields}") == 1  # once, with the names of all its scores
        assert name in shown.partition(f"|{fields}")[0][-200:].split("|")[-1]
    data = json.loads(page.blocks["script", "data"])
    assert data["keys"] == list(plain.scores)
    for i, row in enumerate(data["rows"]):
        wanted = [score.per_image[i] for score in plain.scores.values()]
        assert row["scores"] == pytest.approx(wanted, abs=5e-5)
    assert data["rows"][0]["captions"] == [
        ["a red square", -1.25, True, -0.4167],
        ["a square", -2.5, True, -1.25],
    ]
    assert data["rows"][2]["captions"] == [["square in in", -7.0, False, -2.3333]]
    assert "2 different captions" in shown
    own, first = plain.word_use.values()
    assert (own.different_captions, first.different_captions) == (2, 1)
    assert f"Captions {own.as_text()['captions']} {first.as_text()['captions']}" in shown
    assert f"Distinct-1 {own.distinct_1:.3f} {first.distinct_1:.3f}" in shown
    assert f"Distinct-2 {own.distinct_2:.3f} {first.distinct_2:.3f}" in shown
    assert "Content words used 2 of 2, 100.0% 1 of 1, 100.0%" in shown
    assert "3.0 words on average, 2.5 in the references" in shown


def test_an_undefined_score_says_why(tmp_path):
    result = evaluation(tmp_path, examples(tmp_path, 1), [[caption("a square")]])
    page = Reader(report(result, tmp_path))
    assert result.scores["cider"].note
    assert result.scores["cider"].note in html.unescape("".join(page.text))
    row = json.loads(page.blocks["script", "data"])["rows"][0]
    cider = row["scores"][list(result.scores).index("cider")]
    assert cider is None
    assert math.isnan(result.scores["cider"].per_image[0])
    assert "NaN" not in page.blocks["script", "data"]


def test_flags_of_known_captions(tmp_path):
    texts = ["a red square", "a <unk> square", "a a square", "a dog and a dog", "", "square"]
    captions = [[caption(text, finished=text != "square")] for text in texts]
    result = evaluation(
        tmp_path,
        examples(tmp_path, 6),
        captions,
        train=["A red square.", "a square a"],
        judge=lambda image_id, text: image_id != "0.png",
    )
    found = find(result, vocabulary(result, "unused"), "train")
    assert found.flags == [
        ["verbatim", "untrue"],
        ["unk"],
        ["repetition"],
        ["repetition"],
        [],
        ["unfinished"],
    ]
    assert [found.count(flag) for flag in ("unk", "repetition", "untrue")] == [1, 2, 1]
    assert found.lengths == [3, 5, 3, 5, 0, 1]
    used = result.word_use["captions"]
    assert used.words == len({"a", "red", "square", "<", "unk", ">", "dog", "and"})
    assert found.vocabulary_size == used.words + 1
    assert used.different_captions == 6
    assert found.repeated == []


def test_without_a_training_split_nothing_is_called_verbatim(tmp_path):
    result = evaluation(tmp_path, examples(tmp_path, 2), [[caption("a red square")]] * 2)
    found = find(result, vocabulary(result), "train")
    assert not {"verbatim", "untrue"} & set(found.known)
    assert found.repeated == [("a red square", 2)]
    text = report(result, tmp_path)
    assert "not known" in text
    assert "has no train split" in text


@pytest.mark.parametrize(
    ("caption", "repeated"),
    [
        ("a dog runs", False),
        ("a dog dog runs", True),
        ("a dog a dog", True),
        ("a dog and a dog", True),
        ("a large star above a large circle", False),
        ("a man in a red shirt and a woman in a red hat", True),
        ("a", False),
        ("", False),
    ],
)
def test_repetition_is_a_stutter_a_near_pair_or_three_words_said_twice(caption, repeated):
    assert repeats(caption.split()) == repeated


def test_pictures_are_small_and_a_broken_one_is_left_out(tmp_path):
    shown = examples(tmp_path, 4)
    Image.new("RGBA", (1000, 500), (255, 0, 0, 255)).save(shown[0].image)
    shown[1].image.write_text("not a picture")
    shown[2].image.unlink()
    result = evaluation(tmp_path, shown, [[caption("a")]] * 4)
    blocks = Reader(report(result, tmp_path)).blocks
    stored = {key for _, key in blocks if key and key.startswith("picture-")}
    assert stored == {"picture-0", "picture-3"}
    with Image.open(io.BytesIO(base64.b64decode(blocks["script", "picture-0"]))) as picture:
        assert picture.format == "JPEG"
        assert picture.size == (THUMBNAIL, THUMBNAIL // 2)
        assert picture.getpixel((5, 5))[0] > 240


def test_curves_come_from_the_run_around_the_model(plain, tmp_path):
    without = report(plain, tmp_path)
    assert "no <code>metrics.jsonl</code>" in without
    text = report(plain, tmp_path, model=model_folder(tmp_path, epochs=4))
    page = Reader(text)
    assert text.count('class="dot first"') == 4 + 4  # train loss and CIDEr-D
    assert text.count('class="dot second"') == 4 + 4  # dev loss and BLEU-4
    assert "toy-run" in "".join(page.text)
    assert "0.375" in "".join(page.text)  # BLEU-4 of the last epoch


def test_charts_leave_out_what_is_not_a_number():
    nan, infinite = float("nan"), float("inf")
    chart = line_chart(
        "t", [Line("l", [(1, nan), (2, 3.0), (3, infinite), (4, 5.0)], "first")], x_label="x"
    )
    assert chart.count("<circle") == 2
    assert not {"nan", "inf"} & set(re.findall(r"[a-z]+", chart))
    assert line_chart("t", [Line("l", [(1, nan)], "first")], x_label="x") == ""
    assert line_chart("t", [Line("<&", [(1, 2.0)], "first")], x_label="x").count("&lt;&amp;") == 1


def test_the_histogram_says_shares():
    chart = length_chart([2, 2, 3, 50], [2, 4])
    hints = re.findall(r"<title>(.*?)</title>", chart)
    assert hints[2] == "2 words: 50.0% of captions, 50.0% of references"
    assert hints[3] == "3 words: 25.0% of captions, 0.0% of references"
    assert hints[-1] == "30+ words: 25.0% of captions, 0.0% of references"
    heights = [float(h) for h in re.findall(r'height="([\d.]+)"', chart)]
    assert heights[2] == pytest.approx(2 * heights[3], abs=0.2)
    assert heights[4] == 0


def test_the_page_travels_with_the_package():
    folder = Path(find.__code__.co_filename).parent
    assert {"page.html", "page.css", "page.js"} <= {path.name for path in folder.iterdir()}
