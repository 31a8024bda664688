"""What `/metrics` shows, in the text format of Prometheus."""

from __future__ import annotations

import os
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

import psutil

from captioner.serving.door import Visit
from captioner.serving.limits import Uploads

MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
IMAGES = (1, 2, 4, 8, 16, 32, 64, 128)


class Histogram:
    """Counts values by upper bound."""

    def __init__(self, bounds: Sequence[float]):
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def add(self, value: float) -> None:
        """Count a value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def lines(self, name: str, labels: str = "") -> Iterator[str]:
        """Yield the lines of the text format; labels such as `route="/"`."""
        inner, below = f"{labels}," if labels else "", 0
        for bound, count in zip((*map(str, self.bounds), "+Inf"), self.counts, strict=True):
            below += count
            yield f'{name}_bucket{{{inner}le="{bound}"}} {below}'
        outer = f"{{{labels}}}" if labels else ""
        yield f"{name}_sum{outer} {self.total:.6f}"
        yield f"{name}_count{outer} {below}"


class Counters:
    """Counts requests, images and batches."""

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, int]] = Counter()  # by route and status
        self.images: Counter[str] = Counter({"ok": 0, "blank": 0, "error": 0})
        self.seconds: dict[str, Histogram] = defaultdict(lambda: Histogram(SECONDS))  # by route
        self.batches = Histogram(IMAGES)
        self.received = 0  # bytes of bodies
        self._process = psutil.Process(os.getpid())

    def add(self, visit: Visit) -> None:
        """Count a request."""
        self.requests[visit.route, visit.status] += 1
        self.seconds[visit.route].add(visit.seconds)
        self.received += visit.size

    def text(self, waiting: int, uploads: Uploads) -> str:
        """Return the metrics; `waiting` pictures are in the queue."""
        return "\n".join(self._lines(waiting, uploads)) + "\n"

    def _lines(self, waiting: int, uploads: Uploads) -> Iterator[str]:
        yield from _head("captioner_requests_total", "counter", "Requests by route and status.")
        for (route, status), count in sorted(self.requests.items()):
            yield f'captioner_requests_total{{route="{route}",status="{status}"}} {count}'
        yield from _head("captioner_images_total", "counter", "Pictures by outcome.")
        for outcome, count in self.images.items():
            yield f'captioner_images_total{{status="{outcome}"}} {count}'
        name = "captioner_request_seconds"
        yield from _head(name, "histogram", "Seconds from header to answer.")
        for route, seconds in sorted(self.seconds.items()):
            yield from seconds.lines(name, f'route="{route}"')
        name = "captioner_batch_images"
        yield from _head(name, "histogram", "Pictures captioned together.")
        yield from self.batches.lines(name)
        memory = self._process.memory_info().rss
        for name, kind, text, value in (
            ("captioner_received_bytes_total", "counter", "Bytes of bodies.", self.received),
            ("captioner_queue_images", "gauge", "Pictures that wait or are captioned.", waiting),
            ("captioner_uploads", "gauge", "Requests that are read now.", uploads.reading),
            ("captioner_held_bytes", "gauge", "Bytes that wait for an answer.", uploads.held),
            ("process_resident_memory_bytes", "gauge", "Memory of the process.", memory),
        ):
            yield from _head(name, kind, text)
            yield f"{name} {value}"


def _head(name: str, kind: str, text: str) -> Iterator[str]:
    yield f"# HELP {name} {text}"
    yield f"# TYPE {name} {kind}"
