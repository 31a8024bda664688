"""What Prometheus reads."""

from __future__ import annotations

import re

from captioner.serving.counters import Histogram

import toys
from served import png, serving

LINE = re.compile(r'([a-z_]+)(\{[a-z]+="[^"\n]*"(?:,[a-z]+="[^"\n]*")*\})? (\S+)')


def values(text: str) -> dict[str, float]:
    """Read the text format strictly: each name has HELP and TYPE before its samples."""
    found: dict[str, float] = {}
    known: set[str] = set()
    for line in text.splitlines():
        if line.startswith("# TYPE "):
            known.add(line.split()[2])
        elif not line.startswith("# HELP "):
            match = LINE.fullmatch(line)
            assert match, line
            assert re.sub("_(bucket|sum|count)$", "", match[1]) in known | {match[1]} & known
            assert match[1] + (match[2] or "") not in found
            found[match[1] + (match[2] or "")] = float(match[3])
    assert text.endswith("\n")
    return found


def test_requests_pictures_times_and_batches_are_counted() -> None:
    with serving({"toy": toys.captioner()}) as served:
        for _ in range(3):
            served.client.post("/v1/caption", content=png())
        served.client.post("/v1/caption", content=png(colour=(120, 120, 120)))
        served.client.post("/v1/caption", content=b"no picture")
        served.client.post("/v1/captions", files=[("image", ("a.png", png(), "image/png"))] * 4)
        served.client.get("/secret")
        answer = served.client.get("/metrics")
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert "secret" not in answer.text
    found = values(answer.text)
    of_caption = 'route="/v1/caption"'
    assert found[f'captioner_requests_total{{{of_caption},status="200"}}'] == 4
    assert found[f'captioner_requests_total{{{of_caption},status="415"}}'] == 1
    assert found['captioner_requests_total{route="other",status="404"}'] == 1
    assert found['captioner_images_total{status="ok"}'] == 7
    assert found['captioner_images_total{status="blank"}'] == 1
    assert found['captioner_images_total{status="error"}'] == 1
    assert found[f"captioner_request_seconds_count{{{of_caption}}}"] == 5
    assert found[f'captioner_request_seconds_bucket{{{of_caption},le="+Inf"}}'] == 5
    assert found["captioner_batch_images_sum"] == 8
    assert found["captioner_queue_images"] == found["captioner_held_bytes"] == 0
    assert found["captioner_received_bytes_total"] > 8 * len(png())
    assert found["process_resident_memory_bytes"] > 2**20


def test_the_buckets_of_a_histogram() -> None:
    histogram = Histogram((1, 2))
    for value in (0.5, 1, 1.5, 2, 3):
        histogram.add(value)
    assert [*histogram.lines("x", 'a="b"')] == [
        'x_bucket{a="b",le="1"} 2',
        'x_bucket{a="b",le="2"} 4',
        'x_bucket{a="b",le="+Inf"} 5',
        'x_sum{a="b"} 8.000000',
        'x_count{a="b"} 5',
    ]
