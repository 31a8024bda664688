"""Speed on cores that other programs use too, and under a CPU quota.

    python benchmarks/shared_cores.py [--before FOLDER] [--rounds 3] [--seconds 8]
        [--work training] [--backbone mobilenet_v2]

Three kinds of work are measured, each in a process of its own:

- training: tokens per second of `captioner train`, an LSTM of 512 units on stored features;
- caption: calls of `Captioner.caption(path)` per second, one image each;
- job: images per second of `Captioner.caption(paths)`.

Each is measured alone, beside one and two busy processes per core, and under a quota of half the
cores. Two figures are printed for each:

- speed / (speed alone * fair share): at least 0.7. The fair share is 1 / (1 + busy processes per
  core), or the quota's share of the cores.
- speed alone / speed alone of the captioner in `--before`, a checkout of an earlier commit: at
  least 0.98. The two take turns.

The quota is a control group, version 1 or 2, which needs root. Without root, the process may use
half of the cores, and no quota is measured. The exit code is 1 if a target is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import cycle, islice
from pathlib import Path
from statistics import median
from time import perf_counter

from common import check, describe_machine, noise_jpeg

ROOT = Path(__file__).resolve().parents[1]
WORK = ("training", "caption", "job")
BUSY = "while True: pass"
PERIOD = 100_000  # microseconds of a control group's period
GROUPS = Path("/sys/fs/cgroup")
CONFIG = """
data: {root: "bundled:data/scenes"}
encoder: {backbone: %s, weights: none}
decoder: {cell: lstm, hidden_size: 512, embed_size: 512}
training: {batch_size: 64}
"""


def speed(work: str, model: Path, seconds: float) -> float:
    """Measure one kind of work in this process, after a warm-up; return units per second."""
    from captioner import Captioner

    captioner = Captioner.load(model)
    pictures = sorted(map(str, model.parent.glob("*.jpg")))
    if work == "caption":
        captioner.caption(pictures[0])
        start, count = perf_counter(), 0
        while perf_counter() - start < seconds or count < 3:
            captioner.caption(pictures[count % len(pictures)])
            count += 1
        return count / (perf_counter() - start)
    captions = captioner.caption(islice(cycle(pictures), 10**6), batch_size=32)
    for _ in range(64):
        next(captions)
    start, count = perf_counter(), 0
    while perf_counter() - start < seconds or count < 32:
        for _ in range(32):
            next(captions)
        count += 32
    return count / (perf_counter() - start)


def tokens_per_second(model: Path, seconds: float, environment: dict[str, str]) -> float:
    """Train until `seconds` of steps are on record; return the median of the log's speeds."""
    run = model.parent / "run"
    shutil.rmtree(run, ignore_errors=True)
    command = [sys.executable, "-m", "captioner", "train", str(model.parent / "config.yaml")]
    command += ["--set", "training.epochs=1000", "--output", str(run), "--overwrite"]
    log = run / "metrics.jsonl"
    with subprocess.Popen(
        command, cwd=environment["PYTHONPATH"], env=environment, stderr=subprocess.DEVNULL
    ) as process:
        steps: list[float] = []
        first = None
        while first is None or perf_counter() - first < seconds or len(steps) < 4:
            if process.poll() is not None:
                raise RuntimeError(f"captioner train ended with code {process.returncode}")
            with suppress(subprocess.TimeoutExpired):
                process.wait(0.2)
            rows = log.read_text().splitlines() if log.is_file() else []
            parsed = [json.loads(row) for row in rows if row.endswith("}")]
            steps = [row["tokens_per_second"] for row in parsed if row["kind"] == "step"][1:]
            if steps and first is None:
                first = perf_counter()
        process.kill()
    return median(steps)


def measured(work: str, model: Path, checkout: Path, seconds: float) -> float:
    """Measure one kind of work with the captioner of a checkout, in a process of its own."""
    environment = os.environ | {"PYTHONPATH": str(checkout)}
    environment["CAPTIONER_CACHE"] = str(model.parent / "cache")
    if work == "training":
        return tokens_per_second(model, seconds, environment)
    command = [sys.executable, __file__, "--seconds", str(seconds), "--measure", work, str(model)]
    done = subprocess.run(
        command, cwd=checkout, env=environment, capture_output=True, text=True, check=True
    )
    return float(done.stdout.splitlines()[-1])


@contextmanager
def busy(processes: int) -> Iterator[None]:
    """Keep processes busy."""
    running = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(processes)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


@contextmanager
def quota(cores: float) -> Iterator[bool]:
    """Move this process into a control group with a quota; yield whether that was possible."""
    old = (GROUPS / "cpu").is_dir()
    parent = GROUPS / "cpu" if old else GROUPS
    group = parent / f"captioner-{os.getpid()}"
    try:
        group.mkdir()
        limit = str(int(cores * PERIOD))
        if old:
            (group / "cpu.cfs_period_us").write_text(str(PERIOD))
            (group / "cpu.cfs_quota_us").write_text(limit)
        else:
            (group / "cpu.max").write_text(f"{limit} {PERIOD}")
        (group / "cgroup.procs").write_text(str(os.getpid()))
    except OSError:
        yield False
        return
    try:
        yield True
    finally:
        (parent / "cgroup.procs").write_text(str(os.getpid()))
        group.rmdir()


def make_model(folder: Path, backbone: str, checkout: Path) -> Path:
    """Train an epoch with the captioner of a checkout, and draw the images."""
    environment = os.environ | {
        "PYTHONPATH": str(checkout),
        "CAPTIONER_CACHE": str(folder / "cache"),
    }
    config = folder / "config.yaml"
    config.write_text(CONFIG % backbone)
    command = [sys.executable, "-m", "captioner", "train", str(config)]
    command += ["--set", "training.epochs=1", "--output", str(folder / "model")]
    subprocess.run(command, cwd=checkout, env=environment, check=True)
    for i in range(16):
        noise_jpeg(folder / f"{i}.jpg", seed=i, size=(640, 480))
    return folder / "model"


def main() -> None:
    """Measure every kind of work under every condition; print the ratios."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--before", type=Path, help="checkout of an earlier commit")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=8.0, help="of each measurement")
    parser.add_argument("--work", choices=WORK, action="append")
    parser.add_argument("--backbone", default="mobilenet_v2", help="of torchvision")
    parser.add_argument("--measure", nargs=2, metavar=("WORK", "MODEL"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        print(speed(given.measure[0], Path(given.measure[1]), given.seconds))
        return
    print(describe_machine())
    cores = len(os.sched_getaffinity(0))
    checkouts = {"now": ROOT} | ({"before": given.before.resolve()} if given.before else {})
    conditions = {"alone": 1.0, "1 busy": 1 / 2, "2 busy": 1 / 3, "quota": 1 / 2}
    met = True
    with tempfile.TemporaryDirectory() as temporary:
        # An earlier captioner cannot read a later one's model.
        model = make_model(Path(temporary), given.backbone, [*checkouts.values()][-1])
        for work in given.work or WORK:
            speeds: dict[tuple[str, str], list[float]] = {}
            for _ in range(given.rounds):
                for condition, share in conditions.items():
                    for name, checkout in checkouts.items():
                        others = int(condition[0]) * cores if "busy" in condition else 0
                        limited = condition == "quota"
                        with busy(others), quota(share * cores if limited else cores) as possible:
                            if limited and not possible:
                                continue
                            value = measured(work, model, checkout, given.seconds)
                        speeds.setdefault((name, condition), []).append(value)
                        print(f"  {work}, {condition}, {name}: {value:,.1f} per second", flush=True)
            typical = {key: median(values) for key, values in speeds.items()}
            for (name, condition), value in typical.items():
                if condition != "alone":
                    fair = typical[name, "alone"] * conditions[condition]
                    fits = check(f"{work}, {condition}, {name}", value / fair, at_least=0.7)
                    met &= fits or name == "before"
            if given.before:
                ratio = typical["now", "alone"] / typical["before", "alone"]
                met &= check(f"{work} alone, now / before", ratio, at_least=0.98)
    sys.exit(0 if met else 1)


if __name__ == "__main__":
    main()
