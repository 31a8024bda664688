"""Progress that programs read, on stderr and in the journal; and the status of a job from it."""

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

import captioner
from captioner.captioning import progress
from captioner.captioning.journal import lock_of
from captioner.captioning.progress import Progress, command_to_continue
from captioner.captioning.run_state import SILENCE, RunState, noted_in
from captioner.captioning.status import job_status
from captioner.cli import main
from captioner.cli.status import duration
from captioner.errors import ConfigError, DataError
from captioner.system.stages import during, measured, timed

import toys

pytestmark = pytest.mark.usefixtures("ends_what_it_starts")
IMAGES = 21
KEYS = ["seconds", "done", "failed", "total", "rate", "eta", "shares"]
ENVIRONMENT = {
    "PYTHONPATH": str(Path(captioner.__file__).parents[1]),
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    toys.captioner().save("model")
    for number in range(IMAGES):
        colour = list(toys.COLOURS)[number % len(toys.COLOURS)]
        toys.draw(Path(f"pictures/{number:02}.png"), colour, number)
    Path("pictures/09.png").write_bytes(b"no picture")
    return tmp_path


def caption(*words: str):
    command = ["caption", "pictures", "--model", "model", "--batch-size", "4", "--device", "cpu"]
    return CliRunner().invoke(main, [*command, *words])


def lines_of(stderr: str) -> list[dict]:
    return [json.loads(line) for line in stderr.splitlines() if line.startswith("{")]


def status(*words: str):
    return CliRunner().invoke(main, ["status", *words])


def test_the_last_line_of_json_counts_the_whole_job():
    for output in (["--output", "out.jsonl"], [], ["--format", "txt"]):
        *_, last = lines_of(caption("--progress", "json", *output).stderr)
        assert list(last) == KEYS
        assert (last["done"], last["failed"], last["total"]) == (IMAGES, 1, IMAGES)
        assert last["eta"] == 0 and last["rate"] > 0 and last["seconds"] > 0
        assert {*last["shares"]} == {"reading", "cnn", "search", "writing"}
        assert all(share > 0 for share in last["shares"].values())
        assert sum(last["shares"].values()) <= 1.01
    assert not lines_of(caption("--output", "other.jsonl").stderr)
    assert not lines_of(caption("--output", "third.jsonl", "--progress", "none").stderr)


def test_a_resumed_job_counts_what_earlier_runs_did_but_not_in_its_rate():
    caption("--output", "out.jsonl")
    *_, last = lines_of(caption("--output", "out.jsonl", "--progress", "json").stderr)
    assert (last["done"], last["failed"], last["rate"]) == (IMAGES, 1, 0)


def test_a_line_comes_every_second_while_the_job_works(capsys, monkeypatch):
    monkeypatch.setattr(progress, "SECONDS", 0.01)
    beats = []
    with Progress("json", lambda: 8, alive=lambda: beats.append(1)) as shown:
        shown.add(4, 2, 1)
        time.sleep(0.2)
        shown.add(2, 2, 0)
    lines = lines_of(capsys.readouterr().err)
    assert len(lines) > 3 and len(beats) > 3
    assert (lines[0]["done"], lines[0]["failed"], lines[0]["total"]) == (4, 1, 8)
    assert (lines[-1]["done"], lines[-1]["failed"]) == (6, 1)
    assert lines[-1]["eta"] == pytest.approx(2 / lines[-1]["rate"], abs=0.1)


def test_without_a_total_there_is_no_time_left():
    with Progress("none") as shown:
        shown.add(4, 4, 0)
    line = json.loads(shown.line())
    assert line["total"] is None and line["eta"] is None and line["done"] == 4


def test_stages_count_their_time_and_nothing_where_nobody_measures():
    with during("cnn"):
        pass
    with measured() as spent:
        with during("cnn"), during("search"):
            time.sleep(0.01)
        assert list(timed("reading", iter("ab"))) == ["a", "b"]
    with during("cnn"):
        time.sleep(0.01)
    assert {*spent} == {"cnn", "search", "reading"}
    assert 0.01 <= spent["search"] <= spent["cnn"] < 0.02 + spent["search"]


def test_the_command_to_continue_does_not_start_over_and_tells_no_secret(monkeypatch):
    words = ["caption", "a b", "pipe:curl -u me:pw https://x", "https://me:pw@host/1.tar"]
    shown = command_to_continue([*words, "--overwrite", "--output", "c"])
    assert shown == "captioner caption 'a b' pipe:... https://host/1.tar --output c"
    assert len(command_to_continue(["x" * 50] * 1000)) < 2100
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert command_to_continue(["caption"]) == (
        "torchrun --nnodes 2 --nproc-per-node 4 -m captioner caption"
    )
    for local in ("0", "x", "9"):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", local)
        with pytest.raises(ConfigError, match="LOCAL_WORLD_SIZE: must be 1 to 8"):
            command_to_continue(["caption"])


def killed(ranks: int = 1) -> dict:
    """Kill a job by SIGKILL when it has noted some images; return its status while it ran."""
    for number in range(IMAGES, 400):
        shutil.copy("pictures/01.png", f"pictures/{number:03}.png")
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    words = ["-m", "captioner", "caption", "pictures", "--model", "model", "--device", "cpu"]
    more = ["--output", "out.jsonl", "--batch-size", "1"]
    process = subprocess.Popen(
        [sys.executable, *(launch if ranks > 1 else ()), *words, *more],
        env=os.environ | ENVIRONMENT,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        running = {"done": 0}
        while running["done"] < 10:
            assert process.poll() is None
            time.sleep(0.02)
            result = status("out.jsonl", "--json")
            running = json.loads(result.stdout) if not result.exit_code else running
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return running


def test_a_killed_job_is_stopped_and_says_how_it_goes_on():
    running = killed()
    assert running["state"] == "running" and 10 <= running["done"] < 400
    assert running["failed"] in (0, 1) and running["rate"] > 0
    # SQLite may rebuild what processes share to read a journal, `-shm`.
    files = [path for path in Path().iterdir() if not path.name.endswith("-shm")]
    before = {path.name: path.stat().st_mtime_ns for path in files}
    dead = job_status(Path("out.jsonl"))
    assert dead.state == "stopped" and running["done"] <= dead.done < 400
    assert abs(dead.last_sign - time.time()) < 60
    shown = status("out.jsonl").stdout.splitlines()
    assert shown[0].startswith(f"out.jsonl: stopped, {dead.done} of 400 image(s) done, ")
    assert shown[1].startswith("to go on: captioner caption pictures --model model")
    assert {path.name: path.stat().st_mtime_ns for path in files} == before
    caption("--output", "out.jsonl")
    done = job_status(Path("out.jsonl"))
    assert (done.state, done.done, done.total, done.failed, done.eta) == (
        "finished",
        400,
        400,
        1,
        0,
    )
    assert len(list(Path().glob("out.jsonl*"))) == 2  # no log of SQLite is left behind
    assert "to go on" not in status("out.jsonl").stdout


@pytest.mark.slow
def test_several_processes_are_one_job_to_the_progress_and_the_status():
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    words = ["-m", "captioner", "caption", "pictures", "--model", "model", "--device", "cpu"]
    words += ["--output", "two.jsonl", "--progress", "json", "--batch-size", "4"]
    result = subprocess.run(
        [sys.executable, *launch, *words],
        env=os.environ | ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    lines = lines_of(result.stderr)
    assert (lines[-1]["done"], lines[-1]["failed"], lines[-1]["total"]) == (IMAGES, 1, IMAGES)
    assert [line["seconds"] for line in lines] == sorted(line["seconds"] for line in lines)
    found = job_status(Path("two.jsonl"))
    assert (found.state, found.done, found.failed, found.processes) == ("finished", IMAGES, 1, 2)
    running = killed(ranks=2)
    assert (running["state"], running["processes"]) == ("running", 2)
    assert job_status(Path("out.jsonl")).command.startswith("torchrun --nproc-per-node 2 -m")


def test_a_job_on_another_machine_lives_as_long_as_its_lock_is_touched():
    caption("--output", "out.jsonl")
    state = noted_in(Path("out.jsonl.journal")).state
    state.host, state.finished = "elsewhere", False
    with sqlite3.connect("out.jsonl.journal") as db:
        db.execute("UPDATE run SET state = ?", (state.to_json(),))
    db.close()
    assert job_status(Path("out.jsonl")).state == "stopped"
    lock = lock_of(Path("out.jsonl"))
    lock.touch()
    assert job_status(Path("out.jsonl")).state == "running"
    os.utime(lock, (0, time.time() - SILENCE - 1))
    assert job_status(Path("out.jsonl")).state == "stopped"


def test_journals_of_older_versions_are_counted():
    caption("--output", "out.jsonl")
    with sqlite3.connect("out.jsonl.journal") as db:
        db.executescript("DROP TABLE run; DROP TRIGGER record_added; DROP TRIGGER record_changed")
    db.close()
    found = job_status(Path("out.jsonl"))
    assert (found.state, found.done, found.failed, found.total) == ("unknown", IMAGES, 1, None)
    assert "not known whether it runs" in status("out.jsonl").stdout
    caption("--output", "out.jsonl")
    found = job_status(Path("out.jsonl"))
    assert (found.state, found.done, found.failed) == ("finished", IMAGES, 1)


def test_a_retried_failure_is_no_failure_any_more():
    caption("--output", "out.jsonl")
    shutil.copy("pictures/01.png", "pictures/09.png")
    caption("--output", "out.jsonl")
    assert job_status(Path("out.jsonl")).done == IMAGES


def test_files_beside_images_are_counted_and_a_torn_line_is_no_obstacle():
    caption("--format", "txt")
    found = job_status(Path("pictures"))
    assert (found.state, found.done, found.total) == ("unknown", IMAGES - 1, IMAGES)
    with Path("pictures/.captioner-texts.jsonl").open("ab") as file:
        file.write(b'\n{"text": "1')
    Path("pictures/09.png").unlink()
    assert job_status(Path("pictures")).state == "finished"
    Path("pictures/01.txt").unlink()
    assert job_status(Path("pictures")).done == IMAGES - 2


@pytest.mark.parametrize(
    "name", ["none.jsonl", "no/folder/none.jsonl", "model", "model/vocab.json"]
)
def test_what_is_no_job_gets_one_line(name):
    result = status(name)
    assert result.exit_code == 1 and len(result.stderr.splitlines()) == 1
    assert "--output" in result.stderr
    with pytest.raises(DataError):
        job_status(Path(name))


def test_a_damaged_journal_gets_one_line():
    caption("--output", "out.jsonl")
    data = bytearray(Path("out.jsonl.journal").read_bytes())
    data[100:4096] = b"x" * 3996
    Path("out.jsonl.journal").write_bytes(data)
    result = status("out.jsonl")
    assert result.exit_code == 1 and "--salvage" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_journal_that_disappears_meanwhile_gets_one_line(monkeypatch):
    caption("--output", "out.jsonl")

    def removed_before(path: Path):
        path.unlink()
        return noted_in(path)

    monkeypatch.setattr("captioner.captioning.status.noted_in", removed_before)
    with pytest.raises(DataError, match="journal: cannot be read: No such file"):
        job_status(Path("out.jsonl"))


def test_a_state_of_another_version_is_unknown():
    assert RunState(**json.loads(RunState(run="x").to_json())).run == "x"
    caption("--output", "out.jsonl")
    with sqlite3.connect("out.jsonl.journal") as db:
        db.execute("UPDATE run SET state = ?", ('{"new": 1}',))
    db.close()
    assert job_status(Path("out.jsonl")).state == "unknown"


def test_status_needs_no_torch():
    code = "import sys; import captioner.captioning.status; print('torch' in sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout == "False\n"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (61, "1 min 1 s"), (3720, "1 h 2 min"), (90000, "1 d 1 h")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text
