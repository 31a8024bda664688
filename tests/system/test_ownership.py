"""Whatever stands in a folder: what captioner did not write stays as it is, to the byte."""

from __future__ import annotations

import json
import os
import random
import sqlite3
import stat
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import trees
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from trees import COMMANDS, Tools, attempt, changed, plant, snapshot

from captioner.captioner import Captioner
from captioner.captioning.journal import journals_of
from captioner.errors import ConfigError, ModelError
from captioner.run_dir import read_metrics
from captioner.system.ownership import MARKER, owns, writes


@pytest.fixture(scope="module")
def tools(tmp_path_factory) -> Tools:
    return Tools(tmp_path_factory.mktemp("tools"))


def test_all_that_is_written_where_nothing_stands_is_known_again_and_replaced(tools, tmp_path):
    for name, command in COMMANDS.items():
        folder = tmp_path / name.replace(" ", "")
        folder.mkdir()
        assert attempt(tools, command, folder) is None, name
        again = None if name not in ("train", "caption txt") else "already|exists"
        said = attempt(tools, command, folder)
        assert (said is None) == (again is None) or name == "caption txt", (name, said)


@example(seed=7493, name="caption coco")  # errors.jsonl is a link to nothing
@example(seed=106304, name="caption jsonl --overwrite")  # the journal is a link to nothing
@settings(max_examples=150, suppress_health_check=[*HealthCheck])
@given(seed=st.integers(0, 2**32), name=st.sampled_from(sorted(COMMANDS)))
def test_nothing_of_somebody_elses_changes_by_a_byte(tools, seed, name):
    with TemporaryDirectory() as top:
        folder = Path(top, "somebodys")
        folder.mkdir()
        plant(folder, random.Random(seed))
        before = snapshot(folder)
        said = attempt(tools, COMMANDS[name], folder)
        assert changed(before, snapshot(folder)) == [], said


def test_an_empty_file_whose_name_nobody_typed_is_left_alone(tools, tmp_path):
    (tmp_path / "errors.jsonl").touch()
    with pytest.raises(ConfigError, match=r"errors\.jsonl"):
        tools.caption(tmp_path / "o.jsonl")
    (tmp_path / "report.html").touch()
    with pytest.raises(ConfigError, match=r"report\.html"):
        tools.evaluate(tmp_path)
    held = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    assert held == {"errors.jsonl": 0, "report.html": 0}


@settings(max_examples=40, suppress_health_check=[*HealthCheck])
@given(seed=st.integers(0, 2**32), how=st.sampled_from([{"overwrite": True}, {"resume": True}, {}]))
def test_what_somebody_put_into_a_run_stays(tools, seed, how):
    with TemporaryDirectory() as top:
        run = Path(top, "run")
        tools.train(run)
        tools.evaluate(run / "evaluation")
        ours = snapshot(run)
        plant(run, random.Random(seed))
        foreign = {
            path: what
            for path, what in snapshot(run).items()
            if path not in ours and not _named_as_ours(Path(path))
        }
        said = attempt(tools, lambda *_: tools.train(run, **how), run)
        assert changed(foreign, snapshot(run)) == [], said


def _named_as_ours(path: Path) -> bool:
    """In a folder that is marked, names that captioner writes there are captioner's."""
    kind = path.parent.name or "run"
    return kind in ("run", "checkpoints", "tensorboard") and writes(kind, path.name)


def test_overwriting_a_run_leaves_what_it_did_not_write(tools, tmp_path):
    run = tmp_path / "run"
    tools.train(run)
    tools.evaluate(run / "evaluation")
    kept = ["notes.md", "photos/a.jpg", "checkpoints/step-5 (copy).safetensors", "evaluation/mine"]
    for name in kept:
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).write_text(name)
    (run / "train.log").write_text("of the run before\n")
    (run / "checkpoints" / "step-3.safetensors").touch()
    tools.train(run, overwrite=True)
    assert all((run / name).read_text() == name for name in kept)
    assert "before" not in (run / "train.log").read_text()
    assert not (run / "checkpoints" / "step-3.safetensors").exists()
    assert {path.name for path in (run / "evaluation").iterdir()} == {"mine"}
    log = (run / "train.log").read_text()
    assert "files that are not checkpoints are ignored: step-5 (copy).safetensors" in log


@pytest.mark.parametrize("where", ["model", "checkpoints", "tensorboard"])
def test_a_folder_of_somebody_elses_in_a_run_is_refused_before_anything_changes(
    tools, tmp_path, where
):
    run = tmp_path / "run"
    tools.train(run)
    if where != "model":
        (run / where).mkdir(exist_ok=True)
        (run / where / MARKER).unlink(missing_ok=True)
    (run / where / "mine.txt").write_text("mine")
    before = snapshot(run)
    for how in ({"overwrite": True}, {}):
        with pytest.raises(ConfigError, match=f"{where}: not (marked as|a model dir)"):
            tools.train(run, **how)
        assert snapshot(run) == before


def test_a_run_without_markers_is_neither_deleted_nor_resumed(tools, tmp_path):
    run = tmp_path / "run"
    tools.train(run)
    for marker in (run / MARKER, run / "checkpoints" / MARKER):
        marker.unlink()
    before = snapshot(run)
    for how in ({"overwrite": True}, {"resume": True}):
        with pytest.raises(ConfigError, match="not marked as captioner's run folder"):
            tools.train(run, **how)
        assert snapshot(run) == before


def test_a_mistake_in_the_data_is_found_before_the_old_run_is_deleted(tools, tmp_path, monkeypatch):
    run = tmp_path / "run"
    tools.train(run)
    before = snapshot(run)
    config = tools.config.model_copy(
        update={"data": tools.config.data.model_copy(update={"root": str(tmp_path / "nowhere")})}
    )
    from captioner.training.run import train

    monkeypatch.setattr("captioner.training.run.open_encoder", lambda *_: None)
    with pytest.raises(Exception, match="nowhere"):
        train(config, run, overwrite=True, device="cpu")
    assert snapshot(run) == before


def test_a_model_is_saved_to_an_empty_place_or_over_a_model_only(tools, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    model = tmp_path / "models" / "m"
    tools.captioner.save("~/models/m")
    tools.captioner.save(model)
    assert [path.name for path in model.parent.iterdir()] == ["m"]
    (tmp_path / "link").symlink_to(model)
    (tmp_path / "file").write_text("mine")
    (model / "README.md").write_text("mine")
    before = snapshot(tmp_path)
    for place in ("link", "file", model, ".", "", "..", "/", "models", "file/x", "a\0b", "x" * 300):
        with pytest.raises(ModelError) as caught:
            tools.captioner.save(place)
        assert "\n" not in str(caught.value)
        assert snapshot(tmp_path) == before
    assert Captioner.load(model, "cpu").vocabulary.words


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_what_is_written_follows_the_umask_and_what_is_replaced_keeps_its_mode(
    tools, tmp_path, umask
):
    before = os.umask(umask)
    try:
        tools.train(tmp_path / "run")
        tools.caption(tmp_path / "o.jsonl")
        tools.evaluate(tmp_path / "run" / "evaluation")
        files = [path for path in tmp_path.rglob("*") if path.is_file()]
        assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o666 & ~umask}
        folders = [path for path in tmp_path.rglob("*") if path.is_dir()]
        assert {stat.S_IMODE(path.stat().st_mode) for path in folders} == {0o777 & ~umask}
        for path in (tmp_path / "o.jsonl", tmp_path / "run" / "model" / "model.safetensors"):
            path.chmod(0o640)
        tools.caption(tmp_path / "o.jsonl", overwrite=True)
        tools.captioner.save(tmp_path / "run" / "model")
        for path in (tmp_path / "o.jsonl", tmp_path / "run" / "model" / "model.safetensors"):
            assert stat.S_IMODE(path.stat().st_mode) == 0o640
    finally:
        os.umask(before)


@pytest.mark.parametrize("format", ["jsonl", "csv", "coco", "text"])
def test_captions_are_known_by_every_row_or_by_their_journal(tools, tmp_path, format):
    output = tmp_path / "o"
    tools.caption(output, format=format)
    assert owns(output, "captions")
    tools.caption(output, format=format, overwrite=True)
    journals_of(output)[0].unlink()
    assert owns(output, "captions") == (format in ("jsonl", "csv"))
    with output.open("a") as file:
        file.write("a note of mine\n")
    with pytest.raises(ConfigError, match="not a captions file that captioner wrote"):
        tools.caption(output, format=format, overwrite=True)
    assert output.read_text().endswith("a note of mine\n")


def test_what_only_looks_like_a_journal_is_refused_and_never_opened(tools, tmp_path):
    journal = tmp_path / "o.jsonl.journal"
    with sqlite3.connect(journal) as db:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("CREATE TABLE accounts (name)")
    before = snapshot(tmp_path)
    for overwrite in (False, True):
        with pytest.raises(
            ConfigError, match=r"o\.jsonl\.journal: already exists and is not a journal"
        ):
            tools.caption(tmp_path / "o.jsonl", overwrite=overwrite)
        assert snapshot(tmp_path) == before


@pytest.mark.parametrize("target", ["picture.png", "captions.csv", "weights.safetensors"])
@pytest.mark.parametrize("linked", [False, True])
def test_an_output_in_the_place_of_an_input_is_refused(tools, tmp_path, target, linked):
    folder = tools.picture.parent
    output = folder / target
    if linked:
        output = tmp_path / "link.jsonl"
        output.symlink_to(folder / target)
    before = snapshot(folder)
    for write in (
        lambda: tools.caption(output, overwrite=True),
        lambda: tools.captioner.save(output),
        lambda: tools.captioner.vocabulary.save(output),
        lambda: tools.train(output, overwrite=True),
    ):
        with pytest.raises((ConfigError, ModelError)):
            write()
    tools.score(output)
    assert snapshot(folder) == before


BROKEN = (
    b"not JSON\n",
    b"[1, 2]\n",
    b'{"step": 3}\n',
    b'{"kind": "step"}\n',
    b'{"kind": "step", "epoch": 1, "step": NaN, "loss": 1, "grad_norm": 1, "clipped": 0}\n',
    b'{"kind": "epoch", "epoch": 1, "step": 5, "bleu_4": "high", "cider_d": 0}\n',
    b"\xff\xfe\n",
    b"[" * 100_000 + b"\n",
    b"\n",
    b"a\rb\n",
)


@settings(max_examples=30, suppress_health_check=[*HealthCheck])
@given(lines=st.lists(st.sampled_from(BROKEN), max_size=5), tail=st.booleans())
@example(lines=list(BROKEN), tail=True)
def test_lines_that_no_run_wrote_are_counted_and_kept(tools, lines, tail):
    from captioner.page.charts import Line, line_chart
    from captioner.training.curves import draw_curves
    from captioner.training.telemetry import RunLog

    with TemporaryDirectory() as top:
        run = Path(top, "run")
        tools.train(run)
        metrics = run / "metrics.jsonl"
        written = metrics.read_bytes()
        taken = json.dumps(json.loads(written) | {"step": 1}).encode() + b"\n"
        cut = written[:40] if tail else b""
        metrics.write_bytes(taken + b"".join(lines) + written + cut)
        said: list[str] = []
        found = read_metrics(metrics, said.append)
        assert [line["step"] for line in found] == [1, 7]
        assert len(said) == bool(lines or tail)
        log = RunLog(run)
        log.forget_after(3)
        assert metrics.read_bytes() == taken + b"".join(lines)
        log.record(kind="epoch", epoch=2, step=9, bleu_4=float("nan"), cider_d=0.5)
        assert [line["step"] for line in read_metrics(metrics)] == [1, 9]
        points = [(line["step"], line["loss"]) for line in found if "loss" in line]
        line_chart("loss", [Line("steps", points, "faint")], x_label="step")
    if len(lines) == len(BROKEN):
        draw_curves(found, Path(os.devnull), clip_norm=5.0, best_epoch=1)


def test_a_note_without_a_line_end_is_kept_and_ended(tools, tmp_path):
    tools.train(tmp_path / "run")
    metrics = tmp_path / "run" / "metrics.jsonl"
    with metrics.open("ab") as file:
        file.write(b"# mine")
    tools.train(tmp_path / "run", resume=True)
    assert b"\n# mine\n" in b"\n" + metrics.read_bytes()


def test_a_hundred_trees_in_a_row_are_what_they_were(tools, tmp_path):
    """As the benchmark does it: by chance alone."""
    dice = random.Random(0)
    for number in range(100):
        folder = tmp_path / str(number)
        folder.mkdir()
        plant(folder, dice)
        before = snapshot(folder)
        attempt(tools, COMMANDS[dice.choice(sorted(COMMANDS))], folder)
        assert changed(before, snapshot(folder)) == []
    assert trees.FILES
