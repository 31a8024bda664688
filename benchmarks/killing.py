"""Kill a Ray job at random moments, and count what is lost and what is done twice.

    python benchmarks/killing.py [--kills 20] [--images 400] [--seed 0]

The kills are SIGKILL, in turn for the driver, for a worker, and for every process of the cluster.
The same command is given again after each death. The output must be that of one unbroken plain job,
byte for byte, and no image may be captioned after the journal has it. Needs the extra `ray`.
"""

from __future__ import annotations

import argparse
import os
import random
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import closing, suppress
from itertools import cycle
from pathlib import Path

import psutil
from common import describe_machine, noise_jpeg

LOG = Path(tempfile.gettempdir()) / f"killing-{os.getpid()}.log"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    print(describe_machine())
    with tempfile.TemporaryDirectory(prefix="k", dir="/tmp") as top:
        folder = Path(top)
        for number in range(asked.images):
            noise_jpeg(folder / f"{number:05}.jpg", seed=number)
        os.environ |= {"RAY_TMPDIR": top, "OMP_NUM_THREADS": "1"}
        plain, killed = folder / "plain.jsonl", folder / "killed" / "out.jsonl"
        subprocess.run([*command(folder, plain), "--num-workers", "1"], check=True)
        bad = kill_all(folder, killed, plain, random.Random(asked.seed), asked.kills)
    sys.exit(bad)


def command(folder: Path, output: Path) -> list[str]:
    caption = [sys.executable, "-m", "captioner", "caption", str(folder / "*.jpg")]
    return [*caption, "--output", str(output), "--model", "photos", "--batch-size", "8"]


def kill_all(folder: Path, output: Path, plain: Path, dice: random.Random, kills: int) -> bool:
    """Kill a job again and again, then let it end; return whether anything was wrong."""
    counts, wrong = Counter[str](), Counter[str]()
    kinds, kept, failed = cycle(("driver", "worker", "cluster")), 0, 0
    job = start(folder, output)
    while counts.total() < kills:
        reached = rows(output)
        # Half of the moments are while images are captioned, the others at any time.
        while counts.total() % 2 and job.poll() is None and rows(output) <= reached:
            time.sleep(0.2)
        time.sleep(dice.uniform(0.1, 6))
        if job.poll() is not None:
            is_done = ended(output, plain, wrong)
            kept = 0 if is_done else kept
            failed += not is_done
            job = start(folder, output)
            continue
        kind = next(kinds)
        if kind == "worker" and not (workers := of_job(job, "ray::Worker")):
            kind = "driver"
        if kind == "worker":
            dice.choice(workers).kill()
        else:
            everything = of_job(job)
            job.kill()
            for process in everything if kind == "cluster" else ():
                with suppress(psutil.Error):
                    process.kill()
            job.wait()
            psutil.wait_procs(everything, timeout=60)  # a cluster without its driver ends itself
            for process in everything:
                with suppress(psutil.Error):
                    process.kill()
        counts[kind] += 1
        now = rows(output)
        wrong["rows lost"] += max(kept - now, 0)
        kept = now
        print(f"{counts.total()}: {kind} killed, {now} rows", flush=True)
        if kind != "worker":
            job = start(folder, output)
    while job.wait() and not output.exists() and failed < kills:
        failed += 1
        job = start(folder, output)
    with closing(sqlite3.connect(output.with_name(output.name + ".journal"))) as db:
        names, all_rows = db.execute(
            "SELECT count(DISTINCT name), count(*) FROM records"
        ).fetchone()
    wrong["rows twice"] += all_rows - names
    wrong["outputs that differ"] += output.read_bytes() != plain.read_bytes()
    print(f"kills: {dict(counts)}; {names} images; {dict(wrong)}; {failed} failed starts")
    return bool(wrong.total())


def ended(output: Path, plain: Path, wrong: Counter[str]) -> bool:
    """Compare a finished output and remove it; False if there is none: the job goes on."""
    if not output.exists():
        lines = LOG.read_text(errors="replace").splitlines()
        print("ended without an output:", *lines[-1:], flush=True)
        return False
    wrong["outputs that differ"] += output.read_bytes() != plain.read_bytes()
    for path in output.parent.iterdir():
        path.unlink()
    return True


def start(folder: Path, output: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [*command(folder, output), "--engine", "ray"],
        stderr=LOG.open("w"),
        start_new_session=True,
    )


def of_job(job: subprocess.Popen[bytes], name: str = "") -> list[psutil.Process]:
    """Return the processes that a job started, by a part of their titles."""
    found = []
    with suppress(psutil.Error):
        for process in psutil.Process(job.pid).children(recursive=True):
            with suppress(psutil.Error):
                if name in " ".join(process.cmdline()):
                    found.append(process)
    return found


def rows(output: Path) -> int:
    """Return how many records the journal has."""
    with suppress(sqlite3.Error):
        journal = output.with_name(output.name + ".journal")
        if journal.exists():
            with closing(sqlite3.connect(f"file:{journal}?mode=ro", uri=True)) as db:
                return int(db.execute("SELECT count(*) FROM records").fetchone()[0])
    return 0


if __name__ == "__main__":
    main()
