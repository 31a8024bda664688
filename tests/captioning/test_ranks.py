"""Several processes share one captioning job, started by torchrun as people start them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import captioner

import toys

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ends_what_it_starts")]

ENVIRONMENT = {
    "PYTHONPATH": str(Path(captioner.__file__).parents[1]),
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
}
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")


def caption(folder: Path, output: str, *words: str, ranks: int = 1):
    launch = TORCHRUN if ranks > 1 else ()
    command = ["-m", "captioner", "caption", "pictures", "--model", "model", "--output", output]
    return subprocess.run(
        [sys.executable, *launch, *command, "--batch-size", "4", "--device", "cpu", *words],
        cwd=folder,
        env=os.environ | ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def folder(tmp_path):
    toys.captioner().save(tmp_path / "model")
    for number in range(21):
        colour = list(toys.COLOURS)[number % len(toys.COLOURS)]
        toys.draw(tmp_path / "pictures" / f"{number:02}.png", colour, number)
    (tmp_path / "pictures" / "09.png").write_bytes(b"no picture")
    return tmp_path


def test_two_processes_write_what_one_writes_and_any_number_goes_on(folder):
    one = caption(folder, "one.jsonl")
    two = caption(folder, "two.jsonl", ranks=2)
    assert one.returncode == two.returncode == 1, two.stderr  # one picture is broken
    assert "21 image(s), 20 captioned, 1 failed" in one.stderr
    assert two.stderr.count("21 image(s), 20 captioned, 1 failed") == 1  # only the leader talks
    written = (folder / "one.jsonl").read_bytes()
    assert (folder / "two.jsonl").read_bytes() == written
    assert len(written.splitlines()) == 21
    parts = [folder / name for name in ("two.jsonl.journal", "two.jsonl.journal.1")]
    assert all(part.is_file() for part in parts)
    failures = [json.loads(line) for line in (folder / "errors.jsonl").read_text().splitlines()]
    assert {(row["output"], row["path"]) for row in failures} == {
        (f"{name}.jsonl", "pictures/09.png") for name in ("one", "two")
    }

    # what two have done, one need not do; and the other way round
    again = caption(folder, "two.jsonl")
    assert "(21 in earlier runs)" in again.stderr
    toys.draw(folder / "pictures" / "09.png", "red")
    mended = caption(folder, "one.jsonl", ranks=2)
    assert mended.returncode == 0, mended.stderr
    assert "(20 in earlier runs)" in mended.stderr
    assert len((folder / "one.jsonl").read_bytes().splitlines()) == 21


def test_several_processes_need_a_file_to_write(folder):
    done = subprocess.run(
        [sys.executable, *TORCHRUN, "-m", "captioner", "caption", "pictures", "--model", "model"],
        cwd=folder,
        env=os.environ | ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "several processes need --output" in done.stderr
