"""The four verbs as people type them, on a captioner trained here in a second."""

import csv
import errno
import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import captioner
from captioner.captioning import sources
from captioner.cli import main

import toys


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a data set, and a finished run in `runs/toy`."""
    folder = tmp_path_factory.mktemp("home")
    config = toys.config(folder, epochs=8)
    (folder / "toy.yaml").write_text(config.to_yaml())
    with toys.inside(folder):
        result = run("train", "toy.yaml", "--device", "cpu")
        assert result.exit_code == 0, result.output
        (folder / "said.txt").write_text(result.stderr)
    return folder


@pytest.fixture(autouse=True)
def here(home):
    with toys.inside(home):
        yield


def run(*words, **options):
    return CliRunner().invoke(main, list(words), **options)


def test_train_says_what_it_found_and_what_came_of_it(home):
    said = (home / "said.txt").read_text()
    for words in ("train", "24", "48", "vocabulary", "coverage", "skipped", "nothing"):
        assert words in said
    assert "best dev cider_d" in said
    assert "captioner caption IMAGE --model runs/toy" in said
    assert (home / "runs" / "toy" / "model" / "config.json").exists()


def test_caption_prints_path_and_caption_and_nothing_else_on_stdout():
    result = run("caption", "dev_red_5.png")
    assert result.exit_code == 0
    path, caption = result.stdout.rstrip("\n").split("\t")
    assert path == "dev_red_5.png"
    assert caption.startswith("a red square")
    assert result.stderr == "model: runs/toy/model (the newest run)\n"
    assert run("caption", "dev_red_5.png", "--model", "runs/toy").stderr == ""


@pytest.mark.parametrize(
    ("line", "code", "stdout", "stderr"),
    [
        ("caption łódź.png > out; r=$?; cat out; exit $r", 0, "łódź.png\ta red", ""),
        ("caption - <&-", 1, "", "error: stdin is closed; pass the paths as arguments"),
        ("caption łódź.png >&-", 1, "", "error: stdout is closed; redirect it to a file"),
        (
            "caption łódź.png > /dev/full",
            1,
            "",
            "error: stdout: No space left on device; free some space",
        ),
        ("--version >&-", 1, "", "error: stdout is closed; redirect it to a file"),
        ("caption łódź.png 2>&-", 0, "łódź.png\ta red", ""),
        ("caption łódź.png --output closed.jsonl <&- >&-", 0, "", "1 captioned"),
    ],
)
def test_streams_in_any_state(home, line, code, stdout, stderr):
    shutil.copy(home / "dev_red_5.png", home / "łódź.png")
    shell = f"{sys.executable} -m captioner {line}"
    environment = os.environ | {"PYTHONIOENCODING": "cp1252"}
    result = subprocess.run(
        ["bash", "-c", shell], check=False, capture_output=True, env=environment
    )
    (home / "łódź.png").unlink()
    assert result.returncode == code
    assert result.stdout.decode().startswith(stdout)
    assert stderr in result.stderr.decode()
    assert "Traceback" not in result.stderr.decode()


def test_files_folders_and_globs_in_order(home):
    result = run("caption", "dev_blue_5.png", "dev_r*.png", str(home))
    names = [line.split("\t")[0] for line in result.stdout.splitlines()]
    assert names[:2] == ["dev_blue_5.png", "dev_red_5.png"]
    assert names[2:] == sorted(names[2:])
    assert len(names) == 2 + 30
    assert "images per second" in result.stderr


def test_a_name_in_another_spelling_is_captioned_and_said(home):
    (home / "windows.csv").write_text("image\nC:\\photos\\DEV_RED_5.PNG\ndev_blue_5.png\n")
    result = run("caption", "windows.csv")
    (home / "windows.csv").unlink()
    names = [line.split("\t")[0] for line in result.stdout.splitlines()]
    assert names == ["dev_red_5.png", "dev_blue_5.png"]
    first = "C:\\photos\\DEV_RED_5.PNG is dev_red_5.png"
    assert f"1 path(s) have another spelling or folder on disk (first: {first})" in result.stderr


def test_a_path_listed_twice_is_captioned_once(home):
    (home / "twice").mkdir()
    (home / "twice" / "a.psd").touch()
    (home / "twice.csv").write_text("image,caption\ndev_red_5.png,one\ndev_red_5.png,two\n")
    words = ("caption", "./dev_red_5.png", "twice.csv", "dev_blue_5.png", "dev_red_5.png")
    result = run(*words)
    names = [line.split("\t")[0] for line in result.stdout.splitlines()]
    assert names == ["./dev_red_5.png", "dev_blue_5.png"]
    assert "3 path(s) listed again and captioned once" in result.stderr
    result = run(*words, "twice", "--repeats")
    assert len(result.stdout.splitlines()) == 5
    assert "1 file(s) passed over, captioner does not read their kind (1 .psd)" in result.stderr
    shutil.rmtree(home / "twice")
    (home / "twice.csv").unlink()


def test_blank_pictures_are_noted_flagged_and_counted(home, tmp_path):
    Image.new("L", (90, 70), 3).save(tmp_path / "black.jpg")
    Image.fromarray(np.full((9, 9), np.nan, np.float32)).save(tmp_path / "nan.tif")
    shutil.copy("dev_red_5.png", tmp_path / "z.png")
    said = f"captioner: {tmp_path / 'black.jpg'}: blank: "
    result = run("caption", str(tmp_path))
    assert (result.exit_code, len(result.stdout.splitlines())) == (0, 3)
    assert result.stderr.count(": blank: ") == 2 and said in result.stderr
    assert "3 image(s), 3 captioned (2 blank), 0 failed" in result.stderr
    words = ("caption", str(tmp_path), "--output", str(tmp_path / "out.jsonl"))
    for tells in (2, 0):  # a resumed job counts them too
        result = run(*words)
        assert result.stderr.count(": blank: ") == tells
        assert "3 captioned (2 blank)" in result.stderr
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["status"] for row in rows] == ["blank", "blank", "ok"]


def test_coco_results_have_the_ids_of_the_table(home, tmp_path):
    for name in ("a1b.png", "a/7.png", "b/7.png"):
        toys.draw(tmp_path / name, "red")
    rows = [{"id": 10, "file_name": "a1b.png"}, {"id": 7, "file_name": "b/7.png"}]
    (tmp_path / "info.json").write_text(json.dumps({"images": rows}))
    results = tmp_path / "results.json"
    for ids in ([10, 7], [10, 7], [10, 8]):  # a new run, a later run, a run with another id
        rows[1]["id"] = ids[1]
        (tmp_path / "info.json").write_text(json.dumps({"images": rows}))
        result = run("caption", str(tmp_path / "info.json"), "--output", str(results))
        assert result.exit_code == 0
        assert [row["image_id"] for row in json.loads(results.read_text())] == ids
    lines = run("caption", str(tmp_path / "info.json"), "--format", "jsonl").stdout.splitlines()
    assert [json.loads(line)["image_id"] for line in lines] == ["10", "8"]
    (tmp_path / "info.json").unlink()
    (tmp_path / "ids.csv").write_text("image_id,file\n3,a/7.png\n3,b/7.png\n")
    result = run("caption", str(tmp_path / "ids.csv"), "--format", "coco")
    assert result.exit_code == 1
    assert "another image has the same COCO id, 3" in result.stderr
    result = run("caption", str(tmp_path), "--recursive", "--format", "coco")
    assert [row["image_id"] for row in json.loads(result.stdout)] == [
        *("a1b", 7, str(tmp_path / "b" / "7.png"))
    ]
    assert "1 image(s) have their path as COCO id" in result.stderr


def test_a_dry_run_counts_and_loads_no_model(home, tmp_path):
    for name in ("a/1.png", "a/2.PNG", "b/3.png"):
        toys.draw(tmp_path / name, "red")
    words = ("caption", str(tmp_path), "--recursive", "--dry-run", "--model", "nowhere")
    result = run(*words)
    assert result.exit_code == 0
    assert result.stdout == f"2 .png in {tmp_path / 'a'}\n1 .png in {tmp_path / 'b'}\n"
    assert "3 image(s), 0 failure(s); a dry run" in result.stderr
    assert run(*words, "missing.png").exit_code == 1
    with tarfile.open(tmp_path / "c.tgz", "w:gz") as tar:
        tar.add(tmp_path / "a", "in")
    (tmp_path / "t.csv").write_text("image\na/1.png\na/1.png\nnone.png\n")
    words = ("caption", f"{tmp_path}/c.tgz", f"{tmp_path}/t.csv", "--dry-run", "--output", "new/o")
    result = run(*words)
    assert result.exit_code == 1
    assert result.stdout == f"1 .png in {tmp_path / 'a'}\n2 .png in {tmp_path / 'c.tgz' / 'in'}\n"
    assert "none.png: no such file" in result.stderr
    assert "3 image(s), 1 failure(s); a dry run" in result.stderr
    assert not (home / "new").exists()


def test_images_are_counted_for_the_progress_bar(home, tmp_path, monkeypatch):
    for name in ("1.png", "2.png"):
        toys.draw(tmp_path / name, "red")
    with ZipFile(tmp_path / "a.zip", "w") as packed:
        packed.write(tmp_path / "1.png", "1.png")
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "1.png", "1.png")
    totals = []
    monkeypatch.setattr(
        "captioner.captioning.job.caption_to_file", lambda *_, count, **__: totals.append(count())
    )
    model = str(home / "runs" / "toy")
    with toys.inside(tmp_path):
        for names in (".", "*.png 1.png", "a.zip .", "a.tar.gz", "-", "pipe:false"):
            run("caption", *names.split(), "--output", "o.jsonl", "--model", model)
    assert totals == [2, 2, 3, None, None, None]


def test_a_job_with_nothing_to_do_loads_no_model(home, tmp_path, monkeypatch):
    toys.draw(tmp_path / "a.png", "red")
    (tmp_path / "empty").mkdir()
    words = ("caption", str(tmp_path), "--format", "txt")
    assert run(*words).exit_code == 0
    monkeypatch.setattr("captioner.captioner.Captioner.load", None)
    again = run(*words)
    assert again.exit_code == 0, again.output
    assert "1 skipped, their .txt file is up to date" in again.stderr
    empty = run("caption", str(tmp_path / "empty"))
    assert empty.exit_code == 1
    assert "no image in this folder" in empty.stderr


def test_paths_on_stdin():
    result = run("caption", "-", input="dev_red_5.png\ndev_blue_5.png\n")
    assert [line.split("\t")[0] for line in result.stdout.splitlines()] == [
        "dev_red_5.png",
        "dev_blue_5.png",
    ]


def test_paths_on_stdin_are_bytes_and_may_come_from_windows(tmp_path):
    name = os.fsencode(tmp_path / "caf") + b"\xe9.png"
    Path(os.fsdecode(name)).write_bytes(Path("dev_red_5.png").read_bytes())
    result = run("caption", "-", input=b"dev_red_5.png\r\n" + name + b"\n")
    assert result.exit_code == 0, result.stderr
    assert [line.split("\t")[0][-9:] for line in result.stdout.splitlines()] == [
        "red_5.png",
        "udce9.png",
    ]


@pytest.mark.parametrize("names", [["dev_red_5.png", "dev_blue_5.png", "no.png"], ["no.png"]])
def test_stdin_that_breaks_loses_no_path_before_the_break(names, monkeypatch, tmp_path):
    lines = sources._lines

    def broken():
        yield from (f"{name}\n" for name in names)
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(sources, "_lines", lambda _: lines(broken()))
    result = run("caption", "-", "--batch-size", "4")
    assert result.exit_code == 1
    assert [line.split("\t")[0] for line in result.stdout.splitlines()] == names[:-1]
    told = result.stderr.splitlines()
    assert any("no.png: no such file" in line for line in told)
    assert told[-1] == (
        "captioner: error: stdin: breaks off: Input/output error; the paths before are captioned, "
        "give the others again"
    )


def test_archives_and_tables_give_the_captions_of_their_files(tmp_path):
    names = ["dev_red_5.png", "dev_blue_5.png"]
    with tarfile.open(tmp_path / "s-0.tar", "w") as tar, ZipFile(tmp_path / "s.zip", "w") as packed:
        for name in names:
            tar.add(name)
            packed.write(name)
    (tmp_path / "list.csv").write_text("\n".join(["image,thumb", *(f"x,{name}" for name in names)]))
    shards = [str(tmp_path / name) for name in ("s-0.tar", "s-1.tar")]
    packed, table = str(tmp_path / "s.zip"), str(tmp_path / "list.csv")
    captions = [line.split("\t")[1] for line in run("caption", *names).stdout.splitlines()]
    result = run("caption", *shards, packed, table, "--image-column", "thumb")
    assert result.exit_code == 1
    assert "s-1.tar: no such file" in result.stderr
    rows = [line.split("\t") for line in result.stdout.splitlines()]
    assert [caption for _, caption in rows] == captions * 3
    assert [name for name, _ in rows] == [
        *(f"{tmp_path}/s-0.tar/{name}" for name in names),
        *(f"{packed}/{name}" for name in names),
        *names,
    ]
    beside = run("caption", packed, "--format", "txt")
    assert beside.exit_code == 1
    assert "archive members get no text file" in beside.stderr
    assert run("caption", packed, "--image-column", "thumb").exit_code == 0


def test_a_broken_file_costs_itself(home):
    (home / "broken.jpg").write_text("this is not a picture")
    result = run("caption", "dev_red_5.png", "broken.jpg", "nowhere.png", "dev_blue_5.png")
    assert result.exit_code == 1
    assert len(result.stdout.splitlines()) == 2
    assert "broken.jpg: not an image" in result.stderr
    assert "nowhere.png: no such file" in result.stderr
    assert "4 image(s), 2 captioned, 2 failed" in result.stderr
    (home / "broken.jpg").unlink()


@pytest.mark.parametrize("penalty", ["0", "2"])
def test_n_best_lists_captions_with_falling_scores(penalty):
    result = run("caption", "dev_red_5.png", "--n-best", "4", "--length-penalty", penalty)
    rows = [line.split("\t") for line in result.stdout.splitlines()]
    assert len(rows) == 4
    values = [float(row[2]) for row in rows]
    assert values == sorted(values, reverse=True)
    assert len({row[1] for row in rows}) == 4


def test_formats(home):
    images = ["dev_red_5.png", "dev_blue_5.png"]
    assert run("caption", *images, "--output", "out.jsonl").exit_code == 0
    records = [json.loads(line) for line in (home / "out.jsonl").read_text().splitlines()]
    assert [r["file_name"] for r in records] == images
    assert set(records[0]) == {"file_name", "image_id", "caption", "score", "status"}
    assert run("caption", *images, "--output", "out.csv").exit_code == 0
    with (home / "out.csv").open(newline="") as file:
        assert [row["caption"] for row in csv.DictReader(file)] == [r["caption"] for r in records]
    coco = json.loads(run("caption", *images, "--format", "coco").stdout)
    assert [entry["caption"] for entry in coco] == [r["caption"] for r in records]
    result = run("caption", images[0], "--format", "txt")
    assert result.stdout == ""
    assert "1 image(s), 1 captioned, 0 failed" in result.stderr
    beside = home / "dev_red_5.txt"
    assert beside.read_text() == records[0]["caption"] + "\n"


def test_no_caption_takes_the_place_of_another_or_of_a_users_file(home, tmp_path):
    for name in ("a/x.png", "b/x.png", "b/x.jpg"):
        toys.draw(tmp_path / name, "red")
    notes = tmp_path / "a" / "x.txt"
    notes.write_text("my notes")
    result = run("caption", str(tmp_path), "--recursive", "--format", "txt")
    assert result.exit_code == 1
    assert notes.read_text() == "my notes"
    assert "another image has the same text file" in result.stderr
    assert "2 image(s), 1 captioned, 1 failed" in result.stderr
    assert "1 passed over, captioner did not write their .txt file" in result.stderr
    assert str(notes) in result.stderr
    again = run("caption", str(tmp_path / "a"), "--format", "txt")
    assert again.exit_code == 0
    assert again.stderr.startswith("model: ") and "0 image(s), 0 captioned" in again.stderr
    picture = tmp_path / "a" / "x.png"
    before = picture.read_bytes()
    given = ("caption", str(picture), "--format", "txt", "--overwrite")
    notes.write_bytes(before)  # a picture by another name
    for existing in ("skip", "replace", "append"):
        refused = run(*given, "--existing", existing)
        assert refused.exit_code == 1
        assert "x.txt: not a text in UTF-8; mend that file, move it away" in refused.stderr
        assert notes.read_bytes() == before
    notes.write_text("my notes")
    picture.rename(picture.with_suffix(".txt"))
    result = run("caption", str(picture.with_suffix(".txt")), *given[2:])
    assert "no image" in result.stderr or "its caption would replace the image" in result.stderr
    picture.with_suffix(".txt").rename(picture)
    assert picture.read_bytes() == before
    notes.write_text("my notes")
    kept = run("caption", str(tmp_path / "a"), "--format", "txt", "--overwrite")
    assert kept.exit_code == 0
    assert "1 passed over" in kept.stderr
    assert notes.read_text() == "my notes"
    coco = run("caption", str(tmp_path), "--recursive", "--format", "coco")
    names = ["x", str(tmp_path / "b" / "x.jpg"), str(tmp_path / "b" / "x.png")]
    assert sorted(row["image_id"] for row in json.loads(coco.stdout)) == sorted(names)
    assert coco.exit_code == 0
    assert run("caption", str(notes), "--format", "txt", "--output", "o").exit_code == 2


def test_evaluate_scores_and_writes(home):
    result = run("evaluate", "--device", "cpu")
    assert result.exit_code == 0, result.stderr
    assert [line.split()[0] for line in result.stdout.splitlines()][:4] == [
        "bleu_1",
        "bleu_2",
        "bleu_3",
        "bleu_4",
    ]
    folder = home / "runs" / "toy" / "evaluation"
    scores = json.loads((folder / "scores.json").read_text())
    for name in ("bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider"):
        assert scores[name]["value"] >= 0
        assert "split:dev" in scores[name]["signature"]
        assert "n:6" in scores[name]["signature"]
    assert scores["bleu_1"]["value"] > 0.8
    words = scores["word_use"]
    assert (words["captions"]["captions"], words["first_references"]["captions"]) == (6, 6)
    assert f"words          {words['captions']['words']} different (first" in result.stdout
    lines = [json.loads(t) for t in (folder / "predictions.jsonl").read_text().splitlines()]
    assert len(lines) == 6
    assert len(lines[0]["references"]) == 2
    report = (folder / "report.html").read_text()
    assert "Loss over steps" in report
    assert str(scores["bleu_1"]["signature"]).split("|")[-1] in report
    assert f"report: {Path('runs', 'toy', 'evaluation', 'report.html')}" in result.stderr


def test_evaluate_takes_a_split_a_data_set_and_a_search(home):
    result = run("evaluate", "--split", "train", "--beam-size", "1", "--output", "elsewhere")
    assert result.exit_code == 0, result.stderr
    scores = json.loads((home / "elsewhere" / "scores.json").read_text())
    assert "decode:beam1" in scores["bleu_4"]["signature"]
    assert "split:train" in scores["bleu_4"]["signature"]
    named = run("evaluate", "--data", "captions.csv", "--split", "val", "--output", "elsewhere")
    assert named.exit_code == 0, named.stderr
    wrong = run("evaluate", "--split", "holiday")
    assert wrong.exit_code == 1
    assert "no images in split 'holiday'" in wrong.stderr


def test_evaluate_measures_the_diversity_of_samples_and_score_finds_it_again(home):
    metrics = ("--metrics", "bleu,diversity,self_cider,novel")
    samples = ("--search", "sample", "--temperature", "2", "--n-best", "4")
    result = run("evaluate", *samples, *metrics, "--output", "samples")
    assert result.exit_code == 0, result.stderr
    scores = json.loads((home / "samples" / "scores.json").read_text())
    again = run("score", "samples", *metrics, "--train", "captions.csv", "--output", "again.json")
    assert again.exit_code == 0, again.stderr
    assert "note: bleu: of each image's first caption" in again.stderr
    stored = json.loads((home / "again.json").read_text())
    for name in ("bleu_1", "div_1", "div_2", "mbleu_4", "self_cider", "novel"):
        assert stored[name] == scores[name]
        assert 0 <= scores[name]["value"] <= 1
        assert "|decode:sample,t2.0," in scores[name]["signature"]
    assert "|caps:4|" in scores["div_1"]["signature"]
    [line, *_] = map(json.loads, (home / "samples" / "predictions.jsonl").read_text().splitlines())
    assert line["scores"].keys() == stored.keys() - {"word_use"} | {"bleu_2", "bleu_3", "bleu_4"}
    assert "SELF-CIDEr" in (home / "samples" / "report.html").read_text()
    card = (home / "runs" / "toy" / "model" / "README.md").read_text()
    alone = run("evaluate", "--metrics", "diversity", "--output", "alone")
    assert alone.exit_code == 0, alone.stderr
    assert "div_1    undefined (needs 2 captions or more for each image; 6 of 6" in alone.stdout
    [line, *_] = map(json.loads, (home / "alone" / "predictions.jsonl").read_text().splitlines())
    assert line["scores"] == dict.fromkeys(("div_1", "div_2", "mbleu_4"))
    assert (home / "runs" / "toy" / "model" / "README.md").read_text() == card


def test_evaluate_hands_the_pictures_to_clip_and_the_captions_as_written(home, monkeypatch):
    given = {}

    class Clip:
        def __init__(self, model, device):
            given["model"] = model, device
            self.name = "toy"

        def pictures(self, pictures):
            return np.array([[picture.size[0], 0] for picture in pictures]) / 64

        def texts(self, texts):
            given.setdefault("texts", texts)
            return np.array([[0.5, 0.5]] * len(texts))

    monkeypatch.setattr("captioner.embedding.clip.Clip", Clip)
    clip = ("--metrics", "clip_score", "--clip", "toy:x")
    result = run("evaluate", *clip, "--output", "seen", "--device", "cpu")
    assert result.exit_code == 0, result.stderr
    assert given["model"] == ("toy:x", "cpu")
    assert all(text.startswith("A photo depicts a ") for text in given["texts"])
    scores = json.loads((home / "seen" / "scores.json").read_text())
    assert scores["clip_score"]["value"] > 0
    assert "|clip:toy|w:2.5|prompt:A photo depicts|" in scores["ref_clip_score"]["signature"]
    refused = run("evaluate", "--clip", "toy:x")
    assert refused.exit_code == 2
    assert "--clip: only clip_score reads it; name it in --metrics" in refused.stderr


def test_two_models_write_captions_together(home):
    models = ("--model", "runs/toy", "--model", "runs/toy")
    alone = run("caption", "dev_red_5.png", "--model", "runs/toy")
    together = run("caption", "dev_red_5.png", *models)
    assert together.exit_code == 0
    assert together.stdout == alone.stdout  # the average of a model and itself
    output = ("--output", "together.jsonl")
    assert run("caption", "dev_red_5.png", *models, *output).exit_code == 0
    refused = run("caption", "dev_red_5.png", "--model", "runs/toy", *output)
    assert "--overwrite" in refused.stderr  # another model than the journal's
    assert refused.exit_code == 2
    shutil.copytree("runs/toy/model", "twin")
    models = ("--model", "runs/toy", "--model", "twin")
    scored = run("evaluate", *models, "--output", "scores", "--n-best", "4")
    assert scored.exit_code == 0
    assert "beam size: 4 instead of 3, because of --n-best 4" in scored.stderr
    assert "runs/toy" in scored.stderr
    assert ",models2|" in json.loads(Path("scores/scores.json").read_text())["cider"]["signature"]


def test_who_stops_a_job_is_told_that_it_goes_on(home, monkeypatch):
    def stopped(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("captioner.captioning.job.caption_to_file", stopped)
    result = run("caption", "dev_red_5.png", "--model", "runs/toy", "--output", "stopped.jsonl")
    assert result.exit_code == 130
    assert (
        result.stderr
        == "captioner: stopped; results so far are kept; run the same command to continue\n"
    )


def test_who_stops_another_command_is_not_told_that_it_aborted(home, monkeypatch):
    def stopped(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("captioner.evaluation.evaluate.evaluate", stopped)
    result = run("evaluate", "--model", "runs/toy")
    assert result.exit_code == 130
    assert result.stderr == "captioner: stopped\n"


def test_features_are_filled_once(home):
    first = run("features", "toy.yaml", "--set", "encoder.flip=true")
    again = run("features", "toy.yaml", "--set", "encoder.flip=true")
    assert first.exit_code == again.exit_code == 0
    assert "24 images to encode" in first.stderr
    assert "to encode" not in again.stderr


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["train", "nothing.yaml"], 2, "nothing.yaml: no such config"),
        (["train", "toy.yaml", "--set", "training.epochs=0"], 2, "training.epochs"),
        (["train", "toy.yaml", "--set", "training.epoch=3"], 2, "did you mean epochs"),
        (["caption", "data", "--output", "."], 2, ". is a folder; name a file in it"),
        (["caption", "data", "--n-best", "2", "--format", "csv"], 2, "csv holds one caption"),
        (["caption", "nobody://bucket/a.jpg"], 1, "no such file; read are s3, gs, az"),
        (["train", "toy.yaml"], 2, "already holds a run"),
        (["train", "toy.yaml", "--resume", "--overwrite"], 2, "exclude each other"),
        (["train", "toy.yaml", "--output", "new", "--set", "data.root=none"], 1, "none: no such"),
        (["caption"], 2, "Missing argument"),
        (["caption", "dev_red_5.png", "--model", "nowhere"], 1, "no model here"),
        (["caption", "dev_red_5.png", "--device", "quantum"], 2, "--device quantum"),
        (["caption", "dev_red_5.png", "--beam-size", "0"], 2, "error: --beam-size: "),
        (["caption", "dev_red_5.png", "--top-p", "3"], 2, "error: --top-p: "),
        (
            ["caption", "dev_red_5.png", "--temperature", "2"],
            2,
            "--temperature: needs decoding.se",
        ),
        (
            ["caption", "dev_red_5.png", "--search", "sample", "--beam-size", "2"],
            2,
            "--beam-size: needs",
        ),
        (["caption", "x.png", "--max-memory", "lots"], 2, "'lots': not a size in bytes"),
        (["caption", "x.png", "--salvage"], 2, "--salvage needs --output"),
        (["dream"], 2, "No such command"),
    ],
)
def test_mistakes_are_one_clear_message_and_an_exit_code(words, code, message):
    result = run(*words)
    assert result.exit_code == code
    assert message in result.stderr
    assert result.stdout == ""
    assert "Traceback" not in result.stderr


def test_a_model_alone_is_asked_on_what_data(home, tmp_path):
    shutil.copytree(home / "runs" / "toy" / "model", tmp_path / "alone")
    result = run("evaluate", "--model", str(tmp_path / "alone"))
    assert result.exit_code == 2
    assert "name the data with --data DIR" in result.stderr


def test_captions_that_cannot_be_written_are_one_clear_error():
    for output, named in (("/proc/out.jsonl", "out.jsonl"), ("toy.yaml/out.jsonl", "toy.yaml")):
        result = run("caption", "dev_red_5.png", "--output", output)
        assert result.exit_code == 1
        assert named in result.stderr
        assert "Traceback" not in result.stderr
        assert result.exception is None or isinstance(result.exception, SystemExit)


def test_without_a_model_the_bundled_one_captions(tmp_path, monkeypatch, home):
    monkeypatch.chdir(tmp_path)
    picture = str(home / "dev_red_5.png")
    result = run("caption", picture)
    assert result.exit_code == 0
    assert result.stdout.startswith(f"{picture}\t")
    assert "model: photos (bundled with captioner)" in result.stderr
    monkeypatch.setenv("CAPTIONER_MODEL", str(home / "runs" / "toy"))
    assert run("caption", picture).exit_code == 0


def test_help_and_version():
    for verb in ("train", "caption", "evaluate", "features"):
        assert verb in run("--help").stdout
        assert run(verb, "--help").stdout.startswith("Usage:")
    assert run("--version").stdout.startswith("captioner 0")


@pytest.mark.slow
def test_as_a_program_a_closed_pipe_is_not_a_traceback(home):
    command = f"{sys.executable} -m captioner caption '{home}' --batch-size 1 | head -1"
    environment = os.environ | {"PYTHONPATH": str(Path(captioner.__file__).parents[1])}
    result = subprocess.run(
        command, shell=True, capture_output=True, text=True, env=environment, check=False
    )
    assert len(result.stdout.splitlines()) == 1
    assert "Traceback" not in result.stderr
    assert "BrokenPipe" not in result.stderr


def test_a_job_into_a_file_goes_on_lists_failures_and_tries_them_again(home, tmp_path):
    folder = tmp_path / "pictures"
    for number in range(3):
        toys.draw(folder / f"{number}.png", "red", number)
    (folder / "1.png").write_bytes(b"")
    output = tmp_path / "out.csv"
    words = ["caption", str(folder), "--output", str(output)]
    first = run(*words)
    assert first.exit_code == 1
    assert f"2 captioned, 1 failed, {''}" in first.stderr
    assert str(tmp_path / "errors.jsonl") in first.stderr
    before = output.read_text()
    assert before.splitlines()[2].endswith("1,,,error")
    again = run(*words)
    assert again.exit_code == 0
    assert "3 in earlier runs" in again.stderr
    assert f"nothing new; 1 known failure(s) in {tmp_path / 'errors.jsonl'}" in again.stderr
    assert run(*words, "--retry-errors").exit_code == 1
    toys.draw(folder / "3.png", "blue")
    assert run(*words).exit_code == 0  # a new image, an old failure
    (folder / "4.png").write_bytes(b"")
    assert run(*words).exit_code == 1
    for number in (3, 4):
        (folder / f"{number}.png").unlink()
    assert run(*words).exit_code == 0
    assert output.read_text() == before
    toys.draw(folder / "1.png", "blue")
    assert run(*words, "--retry-errors").exit_code == 0
    assert "error" not in output.read_text()
    other = run(*words, "--beam-size", "1")
    assert other.exit_code == 2
    assert "beam_size was 3, is 1" in other.stderr
    assert run(*words, "--beam-size", "1", "--overwrite", "--scaled-decoding").exit_code == 0
    small = run(*words, "--beam-size", "1", "--overwrite", "--max-pixels", "100")
    assert small.exit_code == 1
    assert "more than the limit of 100" in small.stderr
    stopped = run("caption", str(folder), "--max-pixels", "100", "--on-error", "fail")
    assert stopped.exit_code == 1
    assert stopped.stderr.count("more than the limit") == 1


def test_the_format_names_the_ending_of_sidecars(home, tmp_path):
    picture = toys.draw(tmp_path / "a.png", "red")
    for format in ("txt", "caption", "xmp"):
        assert run("caption", str(picture), "--format", format).exit_code == 0
        assert "a red square" in (tmp_path / f"a.{format}").read_text()
        again = run("caption", str(picture), "--format", format)
        assert f"1 skipped, their .{format} file is up to date" in again.stderr
    wrong = run("caption", str(picture), "--existing", "append")
    assert wrong.exit_code == 2
    assert "--existing needs --format txt, caption or xmp, given text" in wrong.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--engine", "ray"], "--engine ray needs --output"),
        (["--format", "parquet"], "--format parquet needs --output"),
        (["--num-gpus", "1"], "--num-gpus needs --engine ray"),
        (["--engine", "ray", "--output", "o.jsonl", "--device", "cuda"], "--num-gpus chooses"),
    ],
)
def test_what_an_engine_does_not_do_is_refused(home, words, message):
    done = run("caption", "x.png", *words)
    assert done.exit_code == 2
    assert message in done.stderr


def test_a_hostile_name_is_one_harmless_line(home, tmp_path):
    (tmp_path / "a\n\x1b[31m.png").write_bytes(b"")
    done = run("caption", str(tmp_path))
    (line,) = [line for line in done.stderr.splitlines() if "empty file" in line]
    assert line == f"captioner: {tmp_path}/a\\n\\x1b[31m.png: empty file"
