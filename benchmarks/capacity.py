"""Predicts the speed of captioning for a number of workers, and what saturates first.

    python benchmarks/capacity.py --measure FILE [--check] [--model M --photographs DIR]
    python benchmarks/capacity.py [--workers W --decoders D --megabytes-per-second N]
    python benchmarks/capacity.py --plan
    python benchmarks/capacity.py --check

`--measure` measures how long a core takes to decode an image, to run the CNN and to search (beam
3), for two layouts: one process with a thread for each core, and a process for each core. All
threads work at the same time and do all stages in turn, so they disturb each other as in a job. The
times are those of the cores, so other programs on the machine disturb little. Without
`--photographs` the images are smooth noise, 640 x 480, JPEG quality 90. It also captions the
images into files, for the bytes of a row.

Without an option, the script simulates W workers (processes) of D decoders (threads, one core
each) that share a network: threads take images, passes of the CNN and searches from one queue, as
`captioner.system.workers` does. It prints the rate and how busy everything is. `--plan` prints the
tables of docs/guides/scale.md. With `"gpu": true` in the file of times, the CNN and the search of
a worker run on a GPU of its own, beside its decoders.

`--check` measures the times anew, runs `captioner caption` as one process and as one process of
torchrun for each core, in turn, and prints predicted / measured rates. A short run is subtracted
from a long one, in the prediction too, so start-up does not count. Target: 0.9 to 1.1, on an
otherwise idle machine. The core time of an image, measured / predicted, can be compared on a busy
machine too.
"""

from __future__ import annotations

import argparse
import heapq
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from itertools import count, cycle, islice
from math import inf
from pathlib import Path
from statistics import mean, median
from threading import Lock
from time import perf_counter, thread_time
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TIMES = Path(__file__).with_suffix(".json")
BATCH = 256  # images, as `captioner caption` takes by default
SEARCHED = 128  # images that a core searches at a time: `captioner.pipeline.IMAGES_PER_SEARCH`
AHEAD = 2  # batches that are read ahead: `captioner.system.workers.AHEAD`
PICTURES = 256  # different files
STAGES = ("decode", "cnn", "search")
CHECKED = (512, 1536)  # images of a short and a long run; their difference has no start-up
MACHINES = (1, 10, 100)
GIGABITS = (1, 10, 100)
STEADY = 4  # batches of a worker after which a simulation is steady
FEATURES = 2 * 2 * 3072  # bytes: fp16, two views, MobileNetV2 twice and SqueezeNet (flickr8k.yaml)


@dataclass(frozen=True)
class Times:
    """Seconds of one core (or GPU) for one image."""

    decode: float
    cnn: float
    search: float
    piece: int = 4  # images that a core encodes at a time: `Encoder.images_per_pass`
    gpu: bool = False


@dataclass(frozen=True)
class Prediction:
    """The result of a simulation: images, seconds, and how long each resource worked.

    Seconds of cores and GPUs are means over them.
    """

    images: int
    seconds: float
    worked: dict[str, float]

    @property
    def rate(self) -> float:
        """Images per second."""
        return self.images / self.seconds

    @property
    def busy(self) -> dict[str, float]:
        """How busy each resource is, 0 to 1."""
        return {name: seconds / self.seconds for name, seconds in self.worked.items()}

    @property
    def first(self) -> str:
        """What saturates first; of cores, also what they do most."""
        name = max(("network", "cores", "GPU"), key=lambda name: self.busy.get(name, 0))
        if name != "cores":
            return name
        return f"cores: {max(STAGES, key=lambda stage: self.busy.get(stage, 0))}"


class Clock:
    """Calls functions at simulated times."""

    def __init__(self) -> None:
        self.now = 0.0
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        self.number = count()

    def at(self, time: float, call: Callable[[], None]) -> None:
        """Call a function at a time; those of equal times in the order of these calls."""
        heapq.heappush(self.events, (time, next(self.number), call))

    def run(self) -> None:
        """Run until nothing is left to call."""
        while self.events:
            self.now, _, call = heapq.heappop(self.events)
            call()


class Network:
    """Sends files one after another; workers share it."""

    def __init__(self, clock: Clock, bytes_per_second: float) -> None:
        self.clock, self.speed = clock, bytes_per_second
        self.free_at = self.busy = 0.0

    def arrival(self, size: float) -> float:
        """Return when a file arrives that is asked for now."""
        seconds = size / self.speed
        self.free_at = max(self.free_at, self.clock.now) + seconds
        self.busy += seconds
        return self.free_at


class Worker:
    """One process: threads, and batches that go through them as in `captioner.pipeline`."""

    def __init__(
        self, clock: Clock, network: Network, times: Times, threads: int, batches: list[int],
        size: float, start: float,
    ) -> None:  # fmt: skip
        self.clock, self.network, self.times, self.size = clock, network, times, size
        self.batches, self.idle = deque(batches), threads
        self.queue: deque[tuple[str, int, Callable[[], None]]] = deque()
        self.waiting: deque[list[int]] = deque()  # [images, images that are not read yet]
        self.computing = False
        self.busy: Counter[str] = Counter()
        self.ended = 0.0
        clock.at(start, self.read_ahead)

    def read_ahead(self) -> None:
        """Queue the images of the next batches."""
        while self.batches and len(self.waiting) < AHEAD:
            batch = [self.batches.popleft()] * 2
            self.waiting.append(batch)

            def done(batch: list[int] = batch) -> None:
                batch[1] -= 1
                self.next_batch()

            for _ in range(batch[0]):
                self.submit("decode", 1, done)

    def next_batch(self) -> None:
        """Compute the oldest batch once it is read."""
        if self.computing or not self.waiting or self.waiting[0][1]:
            return
        images, _ = self.waiting.popleft()
        self.computing = True
        self.read_ahead()
        if self.times.gpu:
            seconds = images * (self.times.cnn + self.times.search)
            self.busy["GPU"] += seconds
            self.clock.at(self.clock.now + seconds, self.finish)
        else:
            search = lambda: self.spread("search", images, SEARCHED, self.finish)  # noqa: E731
            self.spread("cnn", images, self.times.piece, search)

    def finish(self) -> None:
        """End a batch."""
        self.computing, self.ended = False, self.clock.now
        self.next_batch()

    def spread(self, stage: str, images: int, piece: int, then: Callable[[], None]) -> None:
        """Queue the pieces of a batch; go on when all are done."""
        sizes = [min(piece, images - start) for start in range(0, images, piece)]
        left = [len(sizes)]

        def done() -> None:
            left[0] -= 1
            if not left[0]:
                then()

        for size in sizes:
            self.submit(stage, size, done)

    def submit(self, stage: str, images: int, then: Callable[[], None]) -> None:
        """Queue work for a thread."""
        self.queue.append((stage, images, then))
        if self.idle:
            self.idle -= 1
            self.take()

    def take(self) -> None:
        """Let a thread take the next work, or rest."""
        if not self.queue:
            self.idle += 1
            return
        stage, images, then = self.queue.popleft()
        start = self.network.arrival(self.size) if stage == "decode" else self.clock.now
        seconds = images * getattr(self.times, stage)
        self.busy[stage] += seconds

        def done() -> None:
            then()
            self.take()

        self.clock.at(start + seconds, done)


def simulate(
    times: Times, images: int, workers: int = 1, decoders: int = 1, *, size: float = 0.0,
    bytes_per_second: float = inf,
) -> Prediction:  # fmt: skip
    """Simulate a job.

    Args:
        times: of a core, or a core and a GPU.
        images: of the job.
        workers: processes; batches of `BATCH` images go to them in turn.
        decoders: threads of each, one core each.
        size: bytes of an image.
        bytes_per_second: of the network that all share.
    """
    clock = Clock()
    network = Network(clock, bytes_per_second)
    batches = [min(BATCH, images - start) for start in range(0, images, BATCH)]
    # Workers on one machine start together. Many machines do not stay in step.
    apart = BATCH * (times.decode + times.cnn + times.search) / decoders / workers if size else 0.0
    crew = [
        Worker(clock, network, times, decoders, batches[rank::workers], size, rank * apart)
        for rank in range(workers)
    ]
    clock.run()
    seconds = max(worker.ended for worker in crew)
    worked = {
        stage: sum(worker.busy[stage] for worker in crew) / workers / decoders for stage in STAGES
    }
    worked |= {"cores": sum(worked.values()), "network": network.busy}
    if times.gpu:
        worked["GPU"] = sum(worker.busy["GPU"] for worker in crew) / workers
    return Prediction(images, seconds, worked)


def steady(times: Times, workers: int, decoders: int, **network: float) -> Prediction:
    """Predict a long job: a simulation without its first batches, which all read at once."""
    long, short = (
        simulate(times, batches * BATCH * workers, workers, decoders, **network)
        for batches in (2 * STEADY, STEADY)
    )
    return Prediction(
        long.images - short.images,
        long.seconds - short.seconds,
        {name: seconds - short.worked[name] for name, seconds in long.worked.items()},
    )


# Measuring.


def make_pictures(folder: Path) -> None:
    """Write JPEGs of smooth noise."""
    from common import noise_jpeg

    folder.mkdir(parents=True, exist_ok=True)
    for seed in range(PICTURES):
        noise_jpeg(folder / f"{seed:03}.jpg", seed=seed, size=(640, 480))


def measure_here(model: str, pictures: Path, threads: int) -> None:
    """Do all stages in turn for the seconds that stdin names; print seconds of each for an image.

    Each thread decodes and encodes piece by piece, then searches, and goes on. So a stage finds the
    caches as the others left them, as in a job.
    """
    import torch

    from captioner import Captioner
    from captioner.captioning.records import CaptioningOptions, ItemReader
    from captioner.captioning.sources import Item

    captioner = Captioner.load(model, "cpu")
    options = captioner.settings(beam_size=3)
    items = [Item(path.name, path) for path in sorted(pictures.glob("*.jpg"))[:PICTURES]]
    reader = ItemReader(captioner.encoder, CaptioningOptions())
    memory, piece = reader.memory, captioner.encoder.images_per_pass

    def read(item: Item) -> torch.Tensor:
        record, pixels = reader.read(item, memory.join(), lambda _: True)
        assert pixels is not None, record
        return pixels

    pixels = torch.stack([read(item) for item in items[:SEARCHED]]).split(piece)
    features = torch.cat([captioner.encoder(some) for some in pixels])
    endless, lock = cycle(items), Lock()

    def decode(_: int) -> int:
        with lock:
            item = next(endless)
        read(item)
        return 1

    calls: dict[str, Callable[[int], int]] = {
        "decode": decode,
        "cnn": lambda number: len(captioner.encoder(pixels[number])),
        "search": lambda _: len(captioner.search(features, options)),
    }
    turn = [
        (stage, number) for number in range(len(pixels)) for stage in ["decode"] * piece + ["cnn"]
    ]

    def work(until: float) -> dict[str, float]:
        images, spent = Counter[str](), Counter[str]()
        for stage, number in cycle([*turn, ("search", 0)]):
            if perf_counter() > until and len(images) == len(calls):
                break
            started = thread_time()  # of this thread, however busy the core is
            images[stage] += calls[stage](number)
            spent[stage] += thread_time() - started
        return {stage: spent[stage] / images[stage] for stage in STAGES}

    with ThreadPoolExecutor(threads, initializer=lambda: torch.set_num_threads(1)) as pool:
        print(piece, flush=True)
        for line in sys.stdin:
            until = perf_counter() + float(line)
            done = list(pool.map(lambda _: work(until), range(threads)))  # noqa: B023
            print(*(mean(each[stage] for each in done) for stage in STAGES), flush=True)


def measure(model: str, pictures: Path, processes: int, threads: int, rounds: int) -> Times:
    """Return the times of one core while `processes` of `threads` work; medians over rounds."""
    words = [sys.executable, __file__, "--measure-here", str(threads), "--model", model]
    words += ["--photographs", str(pictures)]
    crew = [
        subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(processes)
    ]

    def answers() -> list[list[float]]:
        return [[*map(float, each.stdout.readline().split())] for each in crew if each.stdout]

    piece = int(answers()[0][0])
    seconds: dict[str, list[float]] = {stage: [] for stage in STAGES}
    for number in range(1 + rounds):
        for each in crew:
            assert each.stdin
            each.stdin.write(f"{1 if number == 0 else 6}\n")
            each.stdin.flush()
        for stage, values in zip(STAGES, zip(*answers(), strict=True), strict=True):
            seconds[stage].append(mean(values))
    for each in crew:
        each.communicate()
    return Times(**{stage: median(values[1:]) for stage, values in seconds.items()}, piece=piece)


def run_captioner(
    model: str, pictures: list[Path], folder: Path, processes: int
) -> tuple[tuple[float, float], dict[str, float]]:
    """Caption copies of files as a user does.

    Returns:
        Seconds on the clock and of cores; and bytes per image by kind of file.
    """
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "in").mkdir(parents=True)
    for number, picture in enumerate(pictures):
        shutil.copy(picture, folder / "in" / f"{number:06}.jpg")
    output = folder / "out" / "captions.jsonl"
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    words = [sys.executable, *(launch if processes > 1 else []), "-m", "captioner", "caption"]
    words += [str(folder / "in"), "--model", model, "--output", str(output), "--beam-size", "3"]
    words += ["--device", "cpu"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    started, before = perf_counter(), os.times()
    done = subprocess.run(words, env=environment, stderr=subprocess.PIPE, text=True, check=False)
    after = os.times()
    if done.returncode:
        raise SystemExit(f"{' '.join(words)}: exit status {done.returncode}\n{done.stderr}")
    used = after.children_user - before.children_user + after.children_system
    seconds = perf_counter() - started, used - before.children_system
    kinds = {"row": [output], "journal": list(output.parent.glob("*.journal*"))}
    sizes = {
        kind: sum(file.stat().st_size for file in files) / len(pictures)
        for kind, files in kinds.items()
    }
    return seconds, sizes


def measure_all(model: str, pictures: list[Path], scratch: Path, rounds: int) -> dict[str, Any]:
    """Return what a file of `--measure` holds: times of a core by layout, and bytes of an image."""
    from common import describe_machine

    cores = len(os.sched_getaffinity(0))
    times = {
        f"{processes}x{threads}": asdict(
            measure(model, pictures[0].parent, processes, threads, rounds)
        )
        for processes, threads in sorted({(1, cores), (cores, 1)})
    }
    _, sizes = run_captioner(model, pictures, scratch / "job", 1)
    sizes["image"] = mean(picture.stat().st_size for picture in pictures)
    return {"machine": describe_machine(), "cores": cores, "times": times, "bytes": sizes}


def check_runs(
    content: dict[str, Any], model: str, pictures: list[Path], scratch: Path, rounds: int
) -> tuple[bool, dict[str, Any]]:
    """Compare predicted with measured rates, of one process and of one for each core."""
    from common import check

    met, results = True, {}
    runs = [list(islice(cycle(pictures), images)) for images in CHECKED]
    more = CHECKED[1] - CHECKED[0]
    layouts = {f"1x{content['cores']}": 1, f"{content['cores']}x1": content["cores"]}
    seconds: dict[str, list[list[tuple[float, float]]]] = {name: [] for name in layouts}
    for _ in range(rounds):  # in turn
        for name, processes in layouts.items():
            job = scratch / "job"
            seconds[name].append([run_captioner(model, run, job, processes)[0] for run in runs])
    for name, processes in layouts.items():
        times = Times(**content["times"][name])
        short, long = (
            simulate(times, images, processes, content["cores"] // processes) for images in CHECKED
        )
        predicted = more / (long.seconds - short.seconds)
        clock, used = ([(end[i] - start[i]) / more for start, end in seconds[name]] for i in (0, 1))
        cost = times.decode + times.cnn + times.search
        shown = ", ".join(f"{getattr(times, stage) * 1e3:.2f} ms {stage}" for stage in STAGES)
        print(f"{name} (processes x threads): an image takes a core {shown}")
        print(
            f"  on the clock: predicted {predicted:.1f}, measured {1 / median(clock):.1f} "
            f"images per second; first: {long.first}"
        )
        print(f"  of cores: {cost * 1e3:.2f} and {median(used) * 1e3:.2f} ms for an image")
        rate, ratio = predicted * median(clock), median(used) / cost
        met &= check(f"rate, predicted / measured, {name}", rate, at_least=0.9, at_most=1.1)
        print(f"core time, measured / predicted, {name}: {ratio:.2f}")
        results[name] = {"predicted": predicted, "clock": clock, "cores": used}
    return met, results


# The tables of the guide.


def plan(content: dict[str, Any]) -> str:
    """Return the tables of docs/guides/scale.md, in Markdown, from a file of `--measure`."""
    cores, sizes = content["cores"], content["bytes"]
    key = f"1x{cores}"
    times = Times(**content["times"][key])
    if "check" in content:  # what cores do besides the three stages
        used = median(content["check"][key]["cores"])
        more = used / (times.decode + times.cnn + times.search)
        times = replace(
            times, decode=times.decode * more, cnn=times.cnn * more, search=times.search * more
        )
    return "\n".join([*machine_rows(times, cores), "", *network_rows(times, cores, sizes["image"]),
                      "", *storage_rows(sizes)])  # fmt: skip


def machine_rows(times: Times, cores: int) -> list[str]:
    """Return the table of machines and hours."""
    one = steady(times, 1, cores)
    rows = [
        "| machine | images/s | saturates first | machine-hours of 1,000,000 | of 1,000,000,000 |",
        "|---|---|---|---|---|",
    ]
    for name, factor in ((f"{cores} cores", 1), ("32 cores of the same kind", 32 / cores)):
        rate = one.rate * factor
        hours = " | ".join(f"{images / rate / 3600:,.1f}" for images in (1e6, 1e9))
        rows.append(f"| {name} | {rate:,.0f} | {one.first} | {hours} |")
    for name in ("one GPU, 16 cores", "eight GPUs, 128 cores"):
        rows.append(f"| {name} | unmeasured | unmeasured | 278 / rate | 277,778 / rate |")
    return rows


def network_rows(times: Times, cores: int, size: float) -> list[str]:
    """Return the table of machines that share a network."""
    one = steady(times, 1, cores, size=size).rate
    rows = [
        f"| machines of {cores} cores | " + " | ".join(f"{g:g} Gbit/s" for g in GIGABITS) + " |",
        "|---|" + "---|" * len(GIGABITS),
    ]
    for machines in MACHINES:
        cells = []
        for gigabits in GIGABITS:
            speed = gigabits * 1e9 / 8
            found = steady(times, machines, cores, size=size, bytes_per_second=speed)
            cells.append(f"{found.rate:,.0f}, {found.first.split(':')[0]}")
        rows.append(f"| {machines:,} | " + " | ".join(cells) + " |")
    for gigabits in GIGABITS[:1]:
        full = gigabits * 1e9 / 8 / size
        rows += ["", f"{gigabits:g} Gbit/s carry {full:,.0f} images of {size / 1e3:,.0f} kB a "
                 f"second, as many as {full / one:,.0f} such machines caption."]  # fmt: skip
    return rows


def storage_rows(sizes: dict[str, float]) -> list[str]:
    """Return the table of bytes."""
    rows = [
        "| | bytes of an image | 1,000,000 images | 1,000,000,000 images |",
        "|---|---|---|---|",
    ]
    for name, size in (
        ("input, read once", sizes["image"]),
        ("output, JSONL", sizes["row"]),
        ("journal", sizes["journal"]),
        ("features for training, 3,072 numbers, two views", FEATURES),
    ):
        rows.append(f"| {name} | {size:,.0f} | {size / 1e3:,.1f} GB | {size / 1e3:,.1f} TB |")
    return rows


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default=str(ROOT / "models/photos/model"), help="a model")
    parser.add_argument("--photographs", type=Path, help="a folder of JPEG files")
    parser.add_argument("--measure", type=Path, metavar="FILE", help="measure times into a file")
    parser.add_argument("--measure-here", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--check", action="store_true", help="compare with real runs")
    parser.add_argument("--plan", action="store_true", help="print the tables of the guide")
    parser.add_argument("--times", type=Path, default=TIMES, help="a file of --measure")
    parser.add_argument("--workers", type=int, default=1, help="processes")
    parser.add_argument("--decoders", type=int, help="threads of each; by default all cores")
    parser.add_argument("--megabytes-per-second", type=float, default=inf, help="of the network")
    parser.add_argument("--rounds", type=int, default=3, help="of measurements")
    given = parser.parse_args()
    if given.measure_here:
        measure_here(given.model, given.photographs, given.measure_here)
        return 0
    if given.measure or given.check:
        return measured(given)
    content = json.loads(given.times.read_text())
    if given.plan:
        print(plan(content))
        return 0
    threads = given.decoders or content["cores"]
    key = f"1x{threads}" if f"1x{threads}" in content["times"] else f"1x{content['cores']}"
    found = steady(
        Times(**content["times"][key]), given.workers, threads, size=content["bytes"]["image"],
        bytes_per_second=given.megabytes_per_second * 1e6,
    )  # fmt: skip
    print(f"{found.rate:,.1f} images per second; saturates first: {found.first}")
    for name, share in sorted(found.busy.items(), key=lambda item: -item[1]):
        print(f"  {name:8} {share:.2f} busy")
    return 0


def measured(given: argparse.Namespace) -> int:
    """Run `--measure` or `--check`; return the exit code."""
    from common import describe_machine

    print(describe_machine())
    with tempfile.TemporaryDirectory() as name:
        folder = given.photographs or Path(name) / "pictures"
        if not given.photographs:
            make_pictures(folder)
        pictures = sorted(folder.glob("*.jpg"))[:PICTURES]
        content, met = measure_all(given.model, pictures, Path(name), given.rounds), True
        if given.check:
            found = check_runs(content, given.model, pictures, Path(name), given.rounds)
            met, content["check"] = found
        if given.measure:
            given.measure.write_text(json.dumps(content, indent=2) + "\n")
        return int(not met)


if __name__ == "__main__":
    sys.exit(main())
