"""Load `captioner serve`: its rate, its waiting times, its memory, a full queue, and its end.

    python benchmarks/serving.py                        # all; about 15 minutes on two cores
    python benchmarks/serving.py --requests 200 --many 500 --only rate

Pictures of 640 x 480 pixels come from a fixed seed. Clients on loopback post them, each the next
as soon as it has an answer. Server and clients share the machine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from common import check, describe_machine, noise_jpeg

DIFFERENT = 200  # pictures
WARM = 64  # requests before the measurement
OK = 200
RETRY = 1.0  # seconds that a client waits after a refusal, about as `Retry-After` says
SECONDS = 120.0  # for one answer

FILES = """
import sys, time
from captioner import Captioner, caption_files, list_images
captioner = Captioner.load(sys.argv[1])
files = [line.strip() for line in open(sys.argv[2])]
some = files[:64]
list(caption_files(captioner, list_images(some)))
start = time.perf_counter()
records = list(caption_files(captioner, list_images(files)))
assert not any(record.error for record in records)
print(len(files) / (time.perf_counter() - start))
"""


@dataclass
class Server:
    """A running `captioner serve`; its log is complete after `end`."""

    process: subprocess.Popen[str]
    port: int
    log: Path

    def memory(self) -> float:
        """Return the resident memory in MiB."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", text)[1]) / 1024  # type: ignore[index]

    def end(self) -> int:
        """Send SIGTERM, and return the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(SECONDS)

    def answered(self) -> int:
        """Return the captions that the log lists."""
        return self.log.read_text().count("POST /v1/caption 200, ")


@contextmanager
def serving(model: str, *options: str) -> Iterator[Server]:
    """Start a server."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with log.open("w") as file:
            command = [sys.executable, "-m", "captioner", "serve", "--model", model, "--port", "0"]
            process = subprocess.Popen([*command, *options], stderr=file, text=True)
        try:
            while not (found := re.search(r"http://127\.0\.0\.1:(\d+)/", log.read_text())):
                assert process.poll() is None, log.read_text()
                time.sleep(0.1)
            yield Server(process, int(found[1]), log)
        finally:
            process.kill()
            process.wait()


@dataclass
class Answers:
    """What clients saw: seconds by status; status 0 is a connection that was refused or closed."""

    seconds: dict[int, list[float]] = field(default_factory=dict)
    wall: float = 0.0

    def add(self, status: int, seconds: float) -> None:
        """Count an answer."""
        self.seconds.setdefault(status, []).append(seconds)

    def counts(self) -> dict[int, int]:
        """Return the number of answers by status."""
        return {status: len(each) for status, each in sorted(self.seconds.items())}


async def post(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, content: bytes
) -> tuple[int, bool]:
    """Post a picture; return the status, and whether the connection stays open."""
    head = f"POST /v1/caption HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(content)}\r\n\r\n"
    writer.write(head.encode() + content)
    answer = (await reader.readuntil(b"\r\n\r\n")).lower()
    length = re.search(rb"content-length: (\d+)", answer)
    body = await reader.readexactly(int(length[1]) if length else 0)
    status = int(answer.split()[1])
    assert status != 200 or json.loads(body)["caption"] is not None
    return status, b"connection: close" not in answer


async def client(
    port: int, pictures: Iterator[bytes], answers: Answers, tell: Callable[[], None]
) -> None:
    """Post the pictures that are left, one after another."""
    streams = None
    for content in pictures:
        start = time.perf_counter()
        try:
            streams = streams or await asyncio.open_connection("127.0.0.1", port)
            async with asyncio.timeout(SECONDS):
                status, stays = await post(*streams, content)
        except (OSError, asyncio.IncompleteReadError):
            status, stays = 0, False
        answers.add(status, time.perf_counter() - start)
        tell()
        if not stays and streams:
            streams[1].close()
        if not stays:
            streams = None
        if status != OK:
            await asyncio.sleep(RETRY * random.uniform(0.5, 1.5))
    if streams:
        streams[1].close()


def load(
    port: int,
    pictures: Sequence[bytes],
    requests: int,
    clients: int,
    tell: Callable[[int], None] = lambda done: None,  # noqa: ARG005
) -> Answers:
    """Post so many pictures from so many clients; `tell` is called with the number of answers."""
    answers = Answers()
    left = (pictures[number % len(pictures)] for number in range(requests))
    done = iter(range(1, requests + 1))

    async def run() -> None:
        tasks = (client(port, left, answers, lambda: tell(next(done))) for _ in range(clients))
        await asyncio.gather(*tasks)

    start = time.perf_counter()
    asyncio.run(run())
    answers.wall = time.perf_counter() - start
    return answers


def part(values: Sequence[float], fraction: float) -> float:
    """Return a quantile in milliseconds."""
    ordered = sorted(values)
    return 1000 * ordered[min(len(ordered) - 1, int(fraction * len(ordered)))]


@dataclass
class Task:
    """What all parts need."""

    model: str
    files: list[Path]
    pictures: list[bytes]
    requests: int
    many: int
    clients: int
    rounds: int


def rate_part(task: Task) -> bool:
    """Compare the rate with that of `caption_files` on the same files, without loading."""
    ratios, met = [], True
    for _ in range(task.rounds):
        with tempfile.TemporaryDirectory() as folder:
            names = Path(folder) / "files"
            files = (task.files * (task.requests // len(task.files) + 1))[: task.requests]
            names.write_text("\n".join(map(str, files)))
            command = [sys.executable, "-c", FILES, task.model, str(names)]
            of_files = float(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
        with serving(task.model) as server:
            load(server.port, task.pictures, WARM, task.clients)
            answers = load(server.port, task.pictures, task.requests, task.clients)
            counts = answers.counts()
            seconds = answers.seconds.get(200, [0.0])
            rate = len(seconds) / answers.wall
            ratios.append(rate / of_files)
            print(
                f"  files {of_files:.1f} images/s, server {rate:.1f}, ratio {ratios[-1]:.2f}; "
                f"p50 {part(seconds, 0.5):.0f} ms, p99 {part(seconds, 0.99):.0f} ms; {counts}"
            )
            met &= counts == {200: task.requests} and server.end() == 0
    print(f"  no failure: {met}")
    return check("server / files, median", sorted(ratios)[len(ratios) // 2], at_least=0.8) and met


def memory_part(task: Task) -> bool:
    """Compare the memory after a tenth of many requests with that after all."""
    with serving(task.model) as server:
        first = load(server.port, task.pictures, task.many // 10, task.clients)
        before = server.memory()
        rest = load(server.port, task.pictures, task.many - task.many // 10, task.clients)
        after = server.memory()
        counts = Counter(first.counts()) + Counter(rest.counts())
        print(f"  {before:.1f} MiB, then {after:.1f} MiB; {dict(counts)}")
    grown = check("memory after all / after a tenth", after / before, at_most=1.05)
    return grown and counts == {200: task.many}


def full_part(task: Task) -> bool:
    """Measure how fast a full queue refuses, while it works on what it has."""
    with serving(task.model, "--max-queue", "8") as server:
        load(server.port, task.pictures, WARM, 4)
        answers = load(server.port, task.pictures, task.requests, task.clients)
        counts = answers.counts()
        seconds = answers.seconds.get(503, [])
        print(f"  {counts}")
        if not seconds:
            return False
        print(f"  503: p50 {part(seconds, 0.5):.1f} ms, p99 {part(seconds, 0.99):.1f} ms")
    fast = check("p99 of a 503, seconds", part(seconds, 0.99) / 1000, at_most=0.05)
    return fast and set(counts) == {200, 503}


def end_part(task: Task) -> bool:
    """Send SIGTERM in the middle; each caption that the server logs must have reached a client."""
    with serving(task.model) as server:

        def tell(done: int) -> None:
            if done == task.requests // 3:
                server.process.send_signal(signal.SIGTERM)

        answers = load(server.port, task.pictures, task.requests, task.clients, tell)
        code = server.process.wait(SECONDS)
        counts, logged = answers.counts(), server.answered()
        print(f"  {counts}, logged {logged}, exit code {code}")
    return counts.get(200, 0) == logged > 0 and set(counts) <= {0, 200, 503} and code == 0


PARTS = {"rate": rate_part, "memory": memory_part, "full": full_part, "end": end_part}


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="photos", help="a model to serve")
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--many", type=int, default=10_000, help="requests of the part memory")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3, help="of the part rate")
    parser.add_argument("--only", choices=PARTS, action="append", help="run these parts only")
    given = parser.parse_args()
    print(describe_machine())
    met = True
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{seed}.jpg" for seed in range(min(DIFFERENT, given.requests))]
        for seed, file in enumerate(files):
            noise_jpeg(file, seed=seed, size=(640, 480))
        pictures = [file.read_bytes() for file in files]
        size = sum(map(len, pictures)) / len(pictures)
        print(
            f"{len(files)} pictures of 640 x 480, {size / 1000:.0f} kB each, {os.cpu_count()} cores"
        )
        sizes = given.requests, given.many, given.clients, given.rounds
        task = Task(given.model, files, pictures, *sizes)
        for name in given.only or PARTS:
            print(f"{name}:")
            met &= PARTS[name](task)
    return int(not met)


if __name__ == "__main__":
    sys.exit(main())
