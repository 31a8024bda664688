"""Captions and references from every kind of file, matched image by image."""

import json
import unicodedata
from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from captioner import __version__
from captioner.captioning.records import Record
from captioner.captioning.writers import write_output
from captioner.errors import DataError
from captioner.metrics import Comparison
from captioner.scoring.compare import compare_files, compare_many, conclusion, holm, verdict
from captioner.scoring.score import score_file
from captioner.scoring.systems import (
    match,
    read_hypotheses,
    read_references,
    reference_tokens,
    references_for,
)
from captioner.text import Caption

SAID = {"1": "a dog runs on the grass", "2": "two men play a game", "3": "a red car on a road"}
TRUE = {
    "1": ["a dog is running on the grass", "the dog runs on grass"],
    "2": ["two men are playing a game", "men play football in a field"],
    "3": ["a car on a road", "a red car drives down the road"],
}


@pytest.fixture
def write(tmp_path):
    def write(name, content):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif isinstance(content, str):
            path.write_text(content, encoding="utf-8")
        elif path.suffix == ".jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in content))
        else:
            path.write_text(json.dumps(content))
        return path

    return write


def captions(found):
    return [image.captions for image in found.images]


def coco_references(order=("1", "2", "3")):
    return {
        "images": [{"id": int(i), "file_name": f"{i}.jpg"} for i in order],
        "annotations": [
            {"id": 10 * int(i) + k, "image_id": int(i), "caption": text}
            for i in order
            for k, text in enumerate(TRUE[i])
        ],
    }


HYPOTHESES = {
    "out.jsonl": [{"image_id": i, "caption": c} for i, c in SAID.items()],
    "results.json": [{"image_id": int(i), "caption": c} for i, c in SAID.items()],
    "out.csv": "image_id,caption\n" + "".join(f"{i},{c}\n" for i, c in SAID.items()),
    "out.tsv": "caption\tID\n" + "".join(f"{c}\t{i}\n" for i, c in SAID.items()),
    "files.csv": "image,caption\n" + "".join(f"pics/{i}.jpg,{c}\n" for i, c in SAID.items()),
    "paths.txt": "".join(f"pics/{i}.jpg\t{c}\n" for i, c in SAID.items()),
    "both.jsonl": [
        {"image_id": f"{i}_stem", "file_name": f"pics/{i}.jpg", "caption": c}
        for i, c in SAID.items()
    ],
}
REFERENCES = {
    "refs.json": coco_references(("3", "1", "2")),
    "refs.jsonl": [
        {"image_id": int(i), "file_name": f"/data/{i}.jpg", "captions": c} for i, c in TRUE.items()
    ],
    "rows.csv": "image,id,caption\n"
    + "".join(f"{i}.jpg,{i},{c}\n" for i in reversed(TRUE) for c in TRUE[i]),
    "lists.csv": "image\tid\tcaption\n"
    + "".join(f"{i}.jpg\t{i}\t{json.dumps(TRUE[i])}\n" for i in TRUE),
}


@pytest.mark.parametrize("hypotheses", HYPOTHESES)
@pytest.mark.parametrize("references", REFERENCES)
def test_every_format_gives_the_same_scores(write, hypotheses, references):
    expected = score_file(
        write("a/hyp.txt", "\n".join(SAID.values()) + "\n"),
        [write(f"a/{k}.txt", "".join(TRUE[i][k] + "\n" for i in TRUE)) for k in (0, 1)],
        metrics=["bleu", "cider"],
        resamples=0,
    )
    assert expected.matched_by == "line"
    assert 0.1 < expected.scores["bleu_4"].value < 1
    done = score_file(
        write(hypotheses, HYPOTHESES[hypotheses]),
        [write(references, REFERENCES[references])],
        metrics=["bleu", "cider"],
        resamples=0,
    )
    by_file = hypotheses in ("files.csv", "paths.txt", "both.jsonl")
    assert done.matched_by == ("file name" if by_file else "image id")
    for name, score in expected.scores.items():
        assert done.scores[name].value == pytest.approx(score.value, abs=1e-12)
        assert done.scores[name].signature == score.signature


def test_flickrs_own_token_file_is_read_as_references(write):
    lines = [f"{i}.jpg#{k}\t{c}\n" for i in TRUE for k, c in enumerate(TRUE[i])]
    found = read_references([write("Flickr8k.token.txt", "".join(lines))])
    assert [image.file for image in found.images] == ["1.jpg", "2.jpg", "3.jpg"]
    assert captions(found) == list(map(tuple, TRUE.values()))


def test_reference_files_add_up_by_id(write):
    files = [
        write(f"{k}.jsonl", [{"id": i, "caption": TRUE[i][k]} for i in order])
        for k, order in enumerate((("1", "2", "3"), ("3", "2", "1")))
    ]
    found = read_references(files)
    assert {image.key: image.captions for image in found.images} == {i: (*TRUE[i],) for i in TRUE}


def test_a_blank_line_is_a_missing_reference_and_an_empty_caption(write):
    files = [
        write("r1.txt", "a dog\r\n\r\na car\r\n"),
        write("r2.txt", "the dog\n...\na red car\n"),
    ]
    found = read_references(files)
    assert reference_tokens(replace(found, images=found.images[2::-2])) == [
        [["a", "car"], ["a", "red", "car"]],
        [["a", "dog"], ["the", "dog"]],
    ]
    with pytest.raises(DataError, match=r"no reference caption for line 2$"):
        reference_tokens(found)
    said = read_hypotheses(write("h.txt", "a dog\n\na car\n"))
    assert captions(said) == [("a dog",), ("",), ("a car",)]


def test_images_missing_on_either_side_are_listed(write):
    many = [{"image_id": i, "caption": "a dog"} for i in range(100, 115)]
    ours = read_hypotheses(write("out.jsonl", [*HYPOTHESES["out.jsonl"][:2], *many]))
    theirs = read_references([write("refs.json", coco_references())])
    with pytest.raises(DataError) as error:
        match(ours, theirs)
    text = str(error.value)
    assert "15 only in" in text and "100, 101, 102" in text and "109 and 5 more" in text
    assert "1 only in" in text and text.endswith("refs.json: 3")
    assert "\n" not in text


def test_subset_passes_over_references_but_never_over_captions(write):
    references = read_references([write("refs.json", coco_references())])
    two = read_hypotheses(write("two.jsonl", HYPOTHESES["out.jsonl"][1:]))
    with pytest.raises(DataError, match=r"1 only in .*refs.json: 1"):
        match(two, references)
    how, matched = match(two, references, subset=True)
    assert (how, captions(matched)) == ("image id", [(*TRUE["2"],), (*TRUE["3"],)])
    other = read_hypotheses(write("o.jsonl", [{"image_id": 9, "caption": "a dog"}]))
    with pytest.raises(DataError, match="only in"):
        match(other, references, subset=True)


def test_names_that_repeat_match_with_their_folders_or_not_at_all(write):
    folders = [{"file_name": f"{f}/1.jpg", "image_id": f, "caption": f"a {f}"} for f in "ab"]
    system = read_hypotheses(write("h.jsonl", folders))
    for start, how in (("", "file name"), ("/data/", "path"), ("C:\\d\\", "path")):
        rows = [r | {"image_id": "x" + r["image_id"]} for r in folders[::-1]]
        rows = [r | {"file_name": start + r["file_name"].replace("/", "\\")} for r in rows]
        found, matched = match(system, read_references([write("r.jsonl", rows)]))
        assert (found, captions(matched)) == (how, [("a a",), ("a b",)])
    other = [
        r | {"file_name": f"{r['image_id']}c/1.jpg", "image_id": "x" + r["caption"]}
        for r in folders
    ]
    with pytest.raises(DataError, match="by image id"):
        match(system, read_references([write("r.jsonl", other)]))


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.jsonl", [{"image_id": 1, "caption": "a"}] * 2, "2 captions for 1"),
        ("a.jsonl", [{"image_id": 1}], "a.jsonl:1: no caption; fields: image_id"),
        ("a.jsonl", [{"image_id": 1, "caption": 3}], "a.jsonl:1: a caption must be text, was 3"),
        ("a.jsonl", [{"image_id": 1, "caption": "a"}, {"caption": "b"}], "a.jsonl:2: no image id"),
        ("a.jsonl", [{"image_id": 1, "caption": "\ud83d"}], "a.jsonl:1: not UTF-8"),
        ("a.jsonl", "{\n", "a.jsonl:1: not valid JSON"),
        ("a.jsonl", "", "no caption in the file"),
        ("a.json", {"captions": []}, "neither COCO results"),
        ("a.json", [1], r"a.json: \[0\]: not an object"),
        ("a.json", "[", "not valid JSON"),
        ("a.csv", "image_id,caption\n1,a,b\n", "a.csv:2: 3 cells, but the header has 2"),
        ("a.txt", b"a dog\na caf\xe9\n", "a.txt:2: not UTF-8: .*; save the file as UTF-8"),
    ],
)
def test_mistakes_are_one_line_with_file_and_line(write, name, content, says):
    with pytest.raises(DataError, match=says) as error:
        read_hypotheses(write(name, content))
    assert "\n" not in str(error.value)


def test_files_that_cannot_go_together_are_refused(write):
    lines, ids = write("a.txt", "a dog\n"), write("b.json", coco_references())
    with pytest.raises(DataError, match=r"has image ids and .* has none"):
        match(read_hypotheses(lines), read_references([ids]))
    with pytest.raises(DataError, match=r"1 lines and .* 2;"):
        match(read_hypotheses(lines), read_references([write("c.txt", "a\nb\n")]))
    with pytest.raises(DataError, match="some files have image ids"):
        read_references([lines, ids])
    with pytest.raises(DataError, match=r"a.txt has 1, .*c.txt has 2"):
        read_references([lines, write("c.txt", "a\nb\n")])


def predictions(folder, said, write, *, split="dev", decode="beam1,lp0.0", references=TRUE):
    rows = [
        {"image_id": i, "file_name": f"{i}.jpg", "caption": c, "references": references[i]}
        for i, c in said.items()
    ]
    signature = f"bleu4|refs:2|tok:ptb|decode:{decode}|split:{split}|n:{len(rows)}|v:{__version__}"
    write(f"{folder}/scores.json", {"bleu_4": {"value": 0.5, "signature": signature}})
    return write(f"{folder}/predictions.jsonl", rows)


def test_predictions_bring_their_references_and_how_they_were_made(write, tmp_path):
    path = predictions("run/evaluation", SAID, write)
    found = read_hypotheses(tmp_path / "run")
    assert found.name == str(path)
    assert captions(references_for([found], [])) == list(map(tuple, TRUE.values()))
    assert (found.signature["decode"], found.signature["split"]) == ("beam1,lp0.0", "dev")
    done = score_file(path, [], metrics=["bleu"], resamples=0)
    assert done.matched_by == "own references"
    assert "decode:beam1,lp0.0|split:dev|n:3" in done.scores["bleu_1"].signature
    write("run/evaluation/scores.json", {"bleu_4": {"signature": "bleu4|n:1000|split:dev"}})
    assert read_hypotheses(path).signature == {}  # of another set of images
    (tmp_path / "run/evaluation/scores.json").unlink()
    assert read_hypotheses(path).signature == {}
    with pytest.raises(DataError, match=r"no predictions\.jsonl"):
        read_hypotheses(tmp_path)


def test_compare_finds_the_better_system_and_where_it_is_better(write):
    ids = [str(i) for i in range(40)]
    truth = {i: [f"a dog number {i} runs", f"the dog {i} is running fast"] for i in ids}
    good = {i: truth[i][0] for i in ids}
    poor = dict.fromkeys(ids, "a cat number sits") | {"7": truth["7"][0]}
    good["7"] = "nothing"
    a = predictions("a", poor, write, references=truth)
    b = predictions("b", dict(reversed(good.items())), write, references=truth, decode="beam5")
    pair = compare_files(a, b, metrics=["bleu", "cider"], resamples=200, examples=2)
    assert {verdict(score) for score in pair.scores.values()} == {"B"}
    assert conclusion(pair.scores).startswith("B is better in bleu_1, bleu_2")
    assert [change.image for change in pair.worsened] == ["7"]
    assert pair.worsened[0].a == truth["7"][0] and pair.worsened[0].b == "nothing"
    assert len(pair.improved) == 2
    assert pair.improved[0].difference >= pair.improved[1].difference > 0
    assert pair.b.label(7) == pair.a.label(7) == "7"  # in one order
    assert pair.as_dict()["cider"]["verdict"] == "B"
    assert pair.warnings == []
    back = compare_files(b, a, metrics=["bleu", "cider"], resamples=200)
    assert conclusion(back.scores).startswith("A is better")


def test_compare_claims_nothing_that_chance_explains(write):
    a = predictions("a", SAID, write)
    same = compare_files(a, a, metrics=["bleu"], resamples=50)
    assert conclusion(same.scores) == "A and B score the same on every image."
    assert not same.improved and not same.worsened
    b = predictions("b", SAID | {"2": "two men"}, write)
    pair = compare_files(a, b, metrics=["cider"], resamples=200)
    assert conclusion(pair.scores) == "No significant difference in cider (p >= 0.05)."


@pytest.mark.parametrize(
    ("difference", "p_bootstrap", "p_randomization", "expected"),
    [
        (0.1, 0.01, 0.01, "B"),
        (-0.1, 0.01, 0.01, "A"),
        (0.1, 0.01, 0.2, "unsure"),
        (0.1, 0.2, 0.01, "unsure"),
        (float("nan"), 0.01, 0.01, "undefined"),
    ],
)
def test_a_verdict_needs_both_tests(difference, p_bootstrap, p_randomization, expected):
    score = Comparison(
        name="bleu_4",
        a=0.2,
        b=0.2 + difference,
        difference=difference,
        interval=(difference, difference),
        p_bootstrap=p_bootstrap,
        p_randomization=p_randomization,
        per_image=np.array([difference]),
        signature="bleu4|n:1",
    )
    assert verdict(score) == expected


def test_compare_says_when_the_stored_scores_do_not_belong_together(write):
    a = predictions("a", SAID, write)
    pair = compare_files(
        a, predictions("b", SAID, write, split="test"), metrics=["bleu"], resamples=10
    )
    (warning,) = pair.warnings
    assert "split dev / test" in warning
    assert "split" not in pair.scores["bleu_1"].signature


def test_compare_refuses_other_images_and_other_references(write):
    a = predictions("a", SAID, write)
    fewer = predictions("b", {i: SAID[i] for i in "12"}, write)
    with pytest.raises(DataError, match=r"1 only in .*a/predictions.jsonl: 3"):
        compare_files(a, fewer, metrics=["bleu"])
    other = TRUE | {"2": ["something else"]}
    changed = predictions("c", SAID, write, references=other)
    with pytest.raises(DataError, match=r"different references for 1 image\(s\), such as 2"):
        compare_files(a, changed, metrics=["bleu"])
    named = write("refs.json", coco_references())
    assert compare_files(a, changed, [named], metrics=["bleu"], resamples=10).scores
    bare = write("bare.jsonl", HYPOTHESES["out.jsonl"])
    with pytest.raises(DataError, match="no references in the file; give"):
        compare_files(bare, bare, metrics=["bleu"])
    # The references of one serve both, whatever the order of its images.
    turned = predictions("d", dict(reversed(SAID.items())), write)
    pair = compare_files(bare, turned, metrics=["bleu"], resamples=10)
    assert pair.scores["bleu_4"].a == pair.scores["bleu_4"].b
    assert pair.scores["bleu_4"].a == pytest.approx(
        score_file(a, [], metrics=["bleu"], resamples=0).scores["bleu_4"].value
    )


def test_what_is_far_too_long_for_a_caption_is_refused(write):
    lines = write("long.txt", "a dog runs\n" + "dog " * 2_501 + "\n")
    with pytest.raises(DataError, match=r"long\.txt:2: a caption of 10,00\d characters, more than"):
        read_references([lines])


@pytest.mark.parametrize("end", ["\n", "\r\n", "\n\n  \n"])
def test_blank_lines_between_and_after_named_captions_do_not_count(write, end):
    found = read_hypotheses(write("h.txt", f"a.jpg\ta dog\n\nb.jpg\ta car{end}{end}"))
    assert [(row.key, row.captions) for row in found.images] == [
        ("a.jpg", ("a dog",)),
        ("b.jpg", ("a car",)),
    ]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("a.jpg\ta dog\nb.jpg a car\n", r"h\.txt:2: no tab, but line 1 has one"),
        ("a dog\na car\n\nb.jpg\ta man\n", r"h\.txt:4: a tab, but line 1 has none"),
    ],
)
def test_a_name_is_never_counted_as_a_word_of_a_caption(write, content, says):
    with pytest.raises(DataError, match=says) as error:
        read_hypotheses(write("h.txt", content))
    assert "\n" not in str(error.value)


def test_blank_ends_do_not_shift_files_that_are_matched_by_line(write):
    said = "a dog\na car\n"
    for ours, theirs in ((said + "\n\n", said), (said, said + "\r\n"), ("a dog\n\n", said)):
        done = score_file(write("h.txt", ours), [write("r.txt", theirs)], metrics=["bleu"])
        assert done.images == 2
    references = read_references([write("1.txt", said), write("2.txt", said + "\n")])
    assert captions(references) == [("a dog",) * 2, ("a car",) * 2]


KARPATHY = {
    "dataset": "x",
    "images": [
        {
            "filename": f"COCO_val2014_{int(i):012}.jpg",
            "filepath": "val2014",
            "cocoid": int(i),
            "imgid": int(i),
            "split": split,
            "sentences": [{"raw": text} for text in texts],
        }
        for split, i, texts in [*(("test", *item) for item in TRUE.items()), ("train", 9, ["a"])]
    ],
}
FLICKR = "image,caption\n" + "".join(f"{i}.jpg,{c}\n" for i in TRUE for c in TRUE[i])
TRAINED_ON = {
    "captions.txt": FLICKR.replace("two men are", '"two men, are"').replace(
        "men play football", "men play , football"
    ),
    "renamed.txt": FLICKR,
    "results.csv": "image_name| comment_number| comment\n"
    + "".join(f"{i}.jpg| {k}| {c} .\n" for i in TRUE for k, c in enumerate(TRUE[i])),
    "dataset_coco.json": KARPATHY,
    "numbered.csv": "id,image,caption\n"
    + "".join(f"{k}{i},d/{i}.jpg,{c}\n" for i in TRUE for k, c in enumerate(TRUE[i])),
    "lists.json": TRUE,
    "objects.json": {i: [{"caption": c} for c in TRUE[i]] for i in TRUE},
    "windows.csv": "image,caption\n"
    + "".join(f"c:\\d\\{i}.jpg,{c}\n" for i in TRUE for c in TRUE[i]),
    "folder/captions.txt": FLICKR,
}


@pytest.mark.parametrize("references", TRAINED_ON)
@pytest.mark.parametrize("hypotheses", ["paths.txt", "results.json", "both.jsonl", "map.json"])
def test_references_are_read_from_what_train_reads(write, hypotheses, references):
    expected = score_file(
        write("lines.txt", "\n".join(SAID.values())),
        [write(f"{k}.txt", "\n".join(t[k] for t in TRUE.values())) for k in (0, 1)],
        metrics=["bleu", "cider"],
        resamples=0,
    )
    path = write(references, TRAINED_ON[references])
    done = score_file(
        write(hypotheses, SAID if hypotheses == "map.json" else HYPOTHESES[hypotheses]),
        [path.parent if "/" in references else path],
        metrics=["bleu", "cider"],
        resamples=0,
    )
    for name, score in expected.scores.items():
        assert done.scores[name].value == pytest.approx(score.value, abs=1e-12)
    assert ("(split test)" in done.source) == (references == "dataset_coco.json")


def test_a_split_of_the_references_is_scored_whole(write):
    karpathy = write("dataset_coco.json", KARPATHY)
    two = write("two.json", dict(list(SAID.items())[:2]))
    with pytest.raises(DataError, match=r"1 only in .*dataset_coco\.json: 3$"):
        score_file(two, [karpathy])
    assert score_file(two, [karpathy], subset=True, resamples=0).images == 2


@pytest.mark.parametrize("with_images", [True, False])
def test_a_folder_of_texts_is_a_system_and_references(write, tmp_path, with_images):
    for i, text in SAID.items():
        write(f"s/{'sub/' if i == '3' else ''}{i}.txt", text + "\n")
        if with_images:
            write(f"s/{'sub/' if i == '3' else ''}{i}.JPG", b"\xff\xd8\xff")
    if with_images:
        write("s/README.txt", "no caption")
    write("s/.captioner-texts.jsonl", "{}\n")
    references = write("refs.json", {f"{i}.jpg": texts for i, texts in TRUE.items()})
    expected = score_file(write("map.json", SAID), [references], metrics=["bleu"], resamples=0)
    done = score_file(tmp_path / "s", [references], metrics=["bleu"], resamples=0)
    assert str(done.scores) == str(expected.scores)
    assert "3 text files" in done.notes[0]
    pair = compare_files(
        tmp_path / "s", tmp_path / "map.json", [tmp_path / "s"], metrics=["bleu"], resamples=10
    )
    assert pair.scores["bleu_1"].a == pair.scores["bleu_1"].b == pytest.approx(1)


def test_a_run_that_was_not_evaluated_is_told_so(write, tmp_path):
    write("run/checkpoints/x", "")
    write("run/metrics.jsonl", [{"epoch": 1}])
    with pytest.raises(DataError, match=r"which `captioner evaluate` writes$"):
        read_hypotheses(tmp_path / "run")


@pytest.mark.parametrize("name", ["IMG_{}.JPG", "img_{}.png"])
def test_names_that_differ_only_in_case_match_with_a_note(write, name):
    said = write("h.json", {name.format(i): text for i, text in SAID.items()})
    references = write("r.json", {f"Img_{i}.jpg": texts for i, texts in TRUE.items()})
    done = score_file(said, [references], metrics=["bleu"], resamples=0)
    first = name.partition(".")[0].format(1)
    assert done.notes == (f"3 images match in another case (first: {first} is Img_1)",)
    pair = compare_files(said, said, [references], metrics=["bleu"], resamples=10)
    assert pair.warnings == list(done.notes)


@pytest.mark.parametrize(
    "written", ["d\\e\u0301_{}.jpg", "./d/\u00e9_{}.jpg", "C:\\x\\d\\\u00e9_{}.jpg"]
)
def test_names_match_in_every_unicode_form_and_with_backslashes(write, written):
    rows = [{"image": written.format(i), "caption": text} for i, text in SAID.items()]
    references = write("r.json", {f"d/\u00e9_{i}.jpg": texts for i, texts in TRUE.items()})
    done = score_file(write("h.jsonl", rows), [references], metrics=["bleu"], resamples=0)
    assert done.images == 3 and not done.notes


def test_rejected_captions_are_no_references(write):
    document = coco_references()
    rejected = {"image_id": 1, "caption": "spam", "is_rejected": True}
    document["annotations"].append(rejected)
    found = read_references([write("vizwiz.json", document)])
    assert ("spam" not in captions(found)[0]) and "1 rejected" in found.notes[0]


NAMES = ["7.jpg", "COCO_val2014_000000000042.jpg", "d/_b=x.PNG", "#a\tb.jpg", "e\u0301.jpg"]
NAMING = ["text", "jsonl", "csv", "parquet"]  # formats that hold names; COCO results do not


@pytest.mark.parametrize("n_best", [1, 2])
@pytest.mark.parametrize(
    ("format", "names"),
    [*product([*NAMING, "coco"], [NAMES]), *product(NAMING, [["a/1.jpg", "b/1.jpg"]])],
)
def test_score_reads_what_caption_writes(write, tmp_path, format, n_best, names):
    if format == "parquet":
        pytest.importorskip("pyarrow")
    path = tmp_path / f"out.{ {'text': 'txt', 'coco': 'json'}.get(format, format) }"
    said = [f"-a dog, number {k}" for k in range(len(names))]
    other = Caption("a cat", -2.0, -0.7, finished=True)
    records = [
        Record(name, (Caption(text, -1.5, -0.5, finished=True), other))
        for name, text in zip(names, said, strict=True)
    ]
    write_output(records, path, format, n_best=n_best)
    references = "image,caption\n" + "".join(
        f"{unicodedata.normalize('NFC', name)},{text}\n"
        for name, text in zip(names, said, strict=True)
    )
    done = score_file(path, [write("captions.txt", references)], metrics=["bleu"], resamples=0)
    assert done.images == len(names)
    assert done.scores["bleu_1"].value == pytest.approx(1.0)
    assert bool(done.notes) == (format == "text" and n_best > 1)


def test_three_systems_are_compared_pair_by_pair(write):
    ids = [str(i) for i in range(40)]
    truth = {i: [f"a dog number {i} runs"] for i in ids}
    good = {i: truth[i][0] for i in ids}
    poor = dict.fromkeys(ids, "a cat number sits")
    paths = [
        predictions("a", poor, write, references=truth),
        predictions("b", dict(reversed(good.items())), write, references=truth, split="test"),
        predictions("c", good, write, references=truth),
    ]
    pairs = compare_many(paths, metrics=["bleu"], resamples=200)
    assert list(pairs.scores) == [(0, 1), (0, 2), (1, 2)]
    content = pairs.as_dict()
    assert [row["verdict"][:11] for row in content["pairs"]] == [
        "B is better",
        "C is better",
        "B and C sco",
    ]
    assert [system["name"] for system in content["systems"]] == ["A", "B", "C"]
    for number, path in enumerate(paths):
        alone = score_file(path, metrics=["bleu"], resamples=0).scores
        for name, score in alone.items():
            assert pairs.values[name][number] == pytest.approx(score.value)
    alone = compare_files(*paths[:2], metrics=["bleu"], resamples=200).scores["bleu_1"]
    assert pairs.scores[0, 1]["bleu_1"].p_bootstrap == pytest.approx(3 * alone.p_bootstrap)
    assert len(pairs.warnings) == 1 and "A and B" in pairs.warnings[0]
    (warning,) = compare_many([paths[0]] * 3, metrics=["bleu"], resamples=10).warnings
    assert "--resamples 120" in warning


def test_holms_correction_has_its_known_values():
    def score(p_value):
        return Comparison("x", 0, 1, 1, (0, 1), p_value, p_value, np.ones(2), "x|n:2")

    p_values = {(0, 1): 0.01, (0, 2): 0.04, (1, 2): 0.03, (2, 3): 0.005}  # Holm, 1979
    found = holm({pair: {"x": score(p_value)} for pair, p_value in p_values.items()})
    corrected = [found[pair]["x"].p_randomization for pair in p_values]
    assert corrected == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert [verdict(found[pair]["x"]) for pair in p_values] == ["B", "unsure", "unsure", "B"]
    undefined = holm({(0, 1): {"x": score(float("nan"))}, (0, 2): {"x": score(0.01)}})
    assert np.isnan(undefined[0, 1]["x"].p_bootstrap)


def test_keys_that_repeat_are_noted_and_the_first_is_scored(tmp_path):
    said = tmp_path / "said.json"
    said.write_text('{"a.jpg": "a dog", "b.jpg": "a cat", "a.jpg": "x"}')
    truth = tmp_path / "truth.jsonl"
    truth.write_text(
        '{"image": "a.jpg", "caption": "a dog", "caption": "x"}\n'
        '{"image": "b.jpg", "caption": "a cat"}\n'
    )
    done = score_file(said, [truth], resamples=0)
    assert done.scores["bleu_1"].value == 1
    assert (
        sum("1 repeated keys in JSON objects, such as 'a.jpg'; the first" in n for n in done.notes)
        == 1
    )
    assert sum("such as 'caption'; the first value of each" in note for note in done.notes) == 1
