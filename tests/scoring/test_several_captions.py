"""Several captions of an image, as files of any format hold them, scored and compared."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from captioner.captioning.records import Record
from captioner.captioning.writers import write_output
from captioner.cli import main
from captioner.errors import DataError
from captioner.metrics import SystemCaptions, score_captions
from captioner.scoring.compare import compare_files, compare_many
from captioner.scoring.metric_sources import MetricSources
from captioner.scoring.score import score_file
from captioner.scoring.systems import read_hypotheses
from captioner.text import Caption, tokenize

SAID = {
    "1": ["a dog runs on the grass", "a dog runs in the grass", "a brown dog"],
    "2": ["two men play a game", "two men play a game", "two men play a game"],
    "3": ["a red car on a road", "the street is empty", "a car"],
}
TRUE = {
    "1": ["a dog is running on the grass", "the dog runs on grass"],
    "2": ["two men are playing a game", "men play football in a field"],
    "3": ["a car on a road", "a red car drives down the road"],
}
SETS = ("diversity", "self_cider")
REFERENCES = [[tokenize(text) for text in texts] for texts in TRUE.values()]


@pytest.fixture
def truth(tmp_path):
    path = tmp_path / "truth.json"
    path.write_text(json.dumps({f"{image}.jpg": texts for image, texts in TRUE.items()}))
    return path


def rows(**keys):
    return "".join(json.dumps(row) + "\n" for row in keys["rows"])


FILES = {
    "map.json": json.dumps({f"{i}.jpg": texts for i, texts in SAID.items()}),
    "coco.json": json.dumps(
        [{"image_id": int(i), "caption": text} for i, texts in SAID.items() for text in texts]
    ),
    "lists.jsonl": rows(rows=[{"image": f"{i}.jpg", "captions": t} for i, t in SAID.items()]),
    "n_best.jsonl": rows(
        rows=[
            {
                "image": f"{i}.jpg",
                "caption": texts[0],
                "n_best": [{"caption": text, "score": 0} for text in texts],
            }
            for i, texts in SAID.items()
        ]
    ),
    "lines.txt": "".join(f"{i}.jpg\t{text}\n" for i, texts in SAID.items() for text in texts),
    "table.csv": "image,caption_0,caption_1,caption_2\n"
    + "".join(f"{i}.jpg,{','.join(texts)}\n" for i, texts in SAID.items()),
}


@pytest.mark.parametrize("name", FILES)
def test_files_with_several_captions(tmp_path, truth, name: str) -> None:
    path = tmp_path / name
    path.write_text(FILES[name])
    written = read_hypotheses(path, several=True).written("ptb")
    assert written.texts == [*SAID.values()]
    found = score_file(path, [truth], metrics=["rouge_l", *SETS], resamples=0)
    expected = score_captions(written, REFERENCES, metrics=["rouge_l", *SETS])
    for key, score in found.scores.items():
        assert score.value == pytest.approx(expected[key].value, abs=1e-12)
        assert 0 < score.value < 1
    assert found.notes[-1] == "rouge_l: of each image's first caption"


def test_without_a_metric_of_several_captions_one_is_due(tmp_path, truth) -> None:
    path = tmp_path / "lists.jsonl"
    path.write_text(FILES["lists.jsonl"])
    with pytest.raises(DataError, match=r"3 captions for 1\.jpg; give one for each image, or ask"):
        score_file(path, [truth], metrics=["bleu"])
    listed = tmp_path / "n_best.jsonl"  # it says which one is the best
    listed.write_text(FILES["n_best.jsonl"])
    assert score_file(listed, [truth], metrics=["bleu"], resamples=0).notes == ()
    path.write_text('{"image": "1.jpg", "captions": []}\n{"image": "2.jpg", "captions": ["a"]}\n')
    with pytest.raises(DataError, match=r"lists\.jsonl"):
        score_file(path, [truth], metrics=["diversity"])


@pytest.mark.parametrize("format", ["jsonl", "parquet"])
def test_n_best_lists_of_captioner(tmp_path, truth, format: str) -> None:
    if format == "parquet":
        pytest.importorskip("pyarrow")
    records = [
        Record(f"{i}.jpg", tuple(Caption(text, -1.0, -1.0, True) for text in texts))
        for i, texts in SAID.items()
    ]
    path = tmp_path / f"out.{format}"
    write_output(records, path, format=format, n_best=3)
    assert read_hypotheses(path, several=True).written("ptb").texts == [*SAID.values()]
    assert read_hypotheses(path).written("ptb").best == [tokenize(t[0]) for t in SAID.values()]


def test_the_caption_comes_first_in_a_list_in_another_order(tmp_path) -> None:
    path = tmp_path / "out.jsonl"
    lists = (["b", "a", "a"], ["b"], "a b", [{"text": "b"}])
    entries = [
        {"image": f"{n}.jpg", "caption": "a", "n_best": [*map(as_entry, each)]}
        for n, each in enumerate(lists)
    ]
    path.write_text(rows(rows=entries))
    texts = read_hypotheses(path, several=True).written("ptb").texts
    assert texts == [["a", "b", "a"], ["a", "b"], ["a"], ["a"]]


def as_entry(text):
    return {"caption": text} if text in ("a", "b") else text


def test_novel_reads_the_train_split_only(tmp_path, truth) -> None:
    path, data = tmp_path / "n_best.jsonl", tmp_path / "data.csv"
    path.write_text(FILES["n_best.jsonl"])
    table = "image,caption,split\nx.jpg,Two men play a game.,train\ny.jpg,a car,dev\n"
    data.write_text(table)
    sources = MetricSources(train=data)
    found = score_file(path, [truth], sources=sources, metrics=["novel"], resamples=0)
    assert found.scores["novel"].value == pytest.approx(6 / 9)
    data.write_text(table.replace("train", "test"))
    with pytest.raises(DataError, match=r"data\.csv: no images in split 'train'; splits: dev"):
        score_file(path, [truth], sources=sources, metrics=["novel"])
    (data := tmp_path / "train.txt").write_text(
        "a car\na brown dog\n"
    )  # a file of captions, one a line
    sources = MetricSources(train=data)
    found = score_file(path, [truth], sources=sources, metrics=["novel"], resamples=0)
    assert found.scores["novel"].value == pytest.approx(7 / 9)


def test_systems_with_several_captions_are_compared(tmp_path, truth) -> None:
    paths = []
    for name, count in (("a", 3), ("b", 3), ("c", 2)):
        texts = {f"{i}.jpg": [*reversed(each)][:count] for i, each in SAID.items()}
        if name == "b":
            texts = {image: each[:1] * 3 for image, each in texts.items()}
        paths.append(tmp_path / f"{name}.json")
        paths[-1].write_text(json.dumps(texts))
    pair = compare_files(*paths[:2], [truth], metrics=["bleu", *SETS], resamples=50)
    assert pair.scores["self_cider"].b == 0
    assert pair.scores["mbleu_4"].b > pair.scores["mbleu_4"].a
    assert pair.warnings == ["bleu: of each image's first caption"]
    many = compare_many(paths, [truth], metrics=SETS, resamples=50)
    assert "images have 2 to 3 captions; their diversity depends on the number" in many.warnings
    ours = SystemCaptions([json.loads(paths[2].read_text())[f"{i}.jpg"] for i in SAID])
    expected = score_captions(ours, REFERENCES, metrics=["diversity"])["div_1"].value
    assert many.values["div_1"][2] == expected


def test_an_option_that_no_metric_reads_is_refused(tmp_path, truth) -> None:
    path = tmp_path / "n_best.jsonl"
    path.write_text(FILES["n_best.jsonl"])
    words = ["score", str(path), str(truth), "--train", str(truth)]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 2
    assert "--train: only novel reads it; name it in --metrics" in result.stderr
    result = CliRunner().invoke(main, [*words, "--metrics", "all,novel,bleu", "--resamples", "0"])
    assert result.exit_code == 0, result.stderr
    names = [line.split()[0] for line in result.stdout.splitlines()]
    assert names[:10] == [
        *(f"bleu_{n}" for n in (1, 2, 3, 4)),
        *("rouge_l", "cider", "cider_d", "meteor", "spice", "novel"),
    ]
