"""A small server without a model: it answers as `captioner serve` does, at once."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from captioner.config import DecodingConfig
from captioner.page.assets import POLICY, page_assets

SENTENCES = {
    "toys": "a brown dog runs through the tall grass",
    "arabic": "كلب بني يركض على العشب الأخضر",
    "hostile": "<script>window.hacked=1</script> & <img src=x>",
}
OTHERS = {
    "toys": ["white", "cat", "is", "walks", "over", "green", "field"],
    "arabic": ["قط", "أبيض", "يقف", "قرب", "الماء"],
    "hostile": ["<b>bold</b>", "x"],
}
UNITS = 48
PLACES = 7
JSON = dict[str, Any]


@dataclass
class Toy:
    """What the server was asked, and what it is told to answer.

    Attributes:
        address: of the page.
        asked: query and body of each POST /v1/caption.
        failures: answers to give first, each status and JSON.
        token: that requests must carry; empty: none.
        slow: seconds before an answer.
        no_maps: why there are no maps; empty: there are.
        slow_files: seconds before a file of the page, by its path.
        halves: seconds in the middle of the next answers with maps; negative: the rest never comes.
    """

    address: str = ""
    asked: list[tuple[dict[str, list[str]], bytes]] = field(default_factory=list)
    failures: list[tuple[int, JSON]] = field(default_factory=list)
    token: str = ""
    slow: float = 0.0
    no_maps: str = ""
    slow_files: dict[str, float] = field(default_factory=dict)
    halves: list[float] = field(default_factory=list)


def words_of(model: str, start: str, forbid: list[str]) -> list[str]:
    """The sentence of a model: it writes on from the start, without forbidden words."""
    whole = SENTENCES[model].split()
    first = start.split()
    rest = whole[len(first) :] if len(first) < len(whole) else []
    spare = iter(OTHERS[model])
    return [*first, *(next(spare) if word in forbid else word for word in rest)]


def chance(place: int, rank: int = 0) -> float:
    """A log-probability that differs from place to place."""
    sure = (0.97, 0.41, 0.86, 0.62, 0.12, 0.93, 0.33, 0.78)[place % 8]
    return round(math.log(sure if not rank else (1 - sure) * 0.5**rank), 6)


def word(model: str, text: str, place: int, count: int) -> JSON:
    """A word with its alternatives; no text is the end."""
    others = [other for other in OTHERS[model] if other != text][:count]
    entry: JSON = {"text": text, "log_prob": chance(place)}
    entry["alternatives"] = [
        {"text": other, "log_prob": chance(place, rank)} for rank, other in enumerate(others, 1)
    ]
    if text:
        entry["alternatives"][-1] = {"text": "", "end": True, "log_prob": chance(place, count)}
    else:
        entry["end"] = True
    return entry


def place_map(place: int) -> list[list[float]]:
    """A spot that wanders over the picture."""
    x, y = 1 + 4 * (place % 4) / 3, 2 + 2 * math.sin(place)
    rows = range(PLACES)
    return [
        [round(math.exp(-((c - x) ** 2 + (r - y) ** 2) / 3) / 9, 6) for c in rows] for r in rows
    ]


def beam_of(model: str, words: list[str], size: int) -> JSON:
    """A tree in which each step has `size` kept and `size` cut candidates."""
    steps: list[list[JSON]] = []
    chosen, alive, number = [], [(0, "")], 0
    for place, text in enumerate([*words, ""]):
        step: list[JSON] = []
        for rank in range(2 * size):
            number += 1
            parent, before = alive[min(rank // 2, len(alive) - 1)]
            last = text if not rank else OTHERS[model][(rank + place) % 5 % 2 + rank % 2]
            node = {"id": number, "parent": parent, "text": last}
            node |= {"caption": f"{before} {last}".strip(), "log_prob": chance(place, rank)}
            node |= {"score": round(-0.3 * (rank + 1) - 0.1 * place, 6), "kept": rank < size}
            step.append(node | {"finished": not text and not rank})
        chosen.append(step[0]["id"])
        alive = [(node["id"], node["caption"]) for node in step[:size]]
        steps.append(step)
    return {"steps": steps, "chosen": chosen}


def state_of(length: int) -> JSON:
    """A state whose units calm down from first to last."""
    times = range(length + 1)
    values = [
        [round(math.sin(unit / 3 + time * (1 - unit / UNITS)), 6) for unit in range(UNITS)]
        for time in times
    ]
    return {
        "units": [(7 * unit) % UNITS for unit in range(UNITS)],
        "values": values,
        "norms": [round(4 + math.sin(time), 6) for time in times],
        "influence": [round(0.9**time, 6) for time in range(length)],
    }


def answer(query: dict[str, list[str]]) -> JSON:
    """The JSON for a query."""
    one = {name: values[-1] for name, values in query.items()}
    model = one.get("model", "toys")
    words = words_of(model, one.get("start", ""), query.get("forbid", []))
    count = int(one.get("words", 0))
    entries = [word(model, text, place, count) for place, text in enumerate([*words, ""])]
    caption = " ".join(words)
    captions = [
        {
            "caption": " ".join([*words[: len(words) - rank], *OTHERS[model][:rank]]),
            "log_prob": -4.2 - rank,
            "score": -0.9 - 0.21 * rank,
            "words": entries,
        }
        for rank in range(int(one.get("n_best", 1)))
    ]
    found: JSON = {"model": model, "status": "ok", "caption": caption, "log_prob": -4.2}
    found |= {"score": -0.9, "n_best": captions, "words": entries}
    found["image"] = {"width": 640, "height": 480, "seen": [0.125, 0, 0.875, 1]}
    if source := one.get("maps"):
        for place, entry in enumerate(entries):
            entry["map"] = place_map(place)
            if source != "gradient":
                entry["sentinel"] = 0.25
        found["map_source"] = source.replace("true", "attention")
    if one.get("trace") == "true":
        size = int(one.get("beam_size", 3))
        found["trace"] = {"beam": beam_of(model, words, size), "state": state_of(len(words) + 1)}
    return found


@contextmanager
def toy_server() -> Iterator[Toy]:
    """Serve the page and the toy's answers on a free port."""
    toy = Toy()
    assets = page_assets()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            pass

        def send(self, status: int, content: bytes, media_type: str, size: int = 0) -> None:
            self.send_response(status)
            self.send_header("Content-Type", media_type)
            self.send_header("Content-Length", str(size or len(content)))
            self.send_header("Content-Security-Policy", POLICY)
            self.send_header("X-Content-Type-Options", "nosniff")
            self.end_headers()
            self.wfile.write(content)

        def send_half(self, content: bytes, seconds: float) -> None:
            self.send(200, content[: len(content) // 2], "application/json", len(content))
            self.wfile.flush()
            time.sleep(abs(seconds))
            self.close_connection = True
            with suppress(OSError):  # the page may have gone
                self.wfile.write(content[len(content) // 2 :] if seconds > 0 else b"")

        def send_json(self, status: int, value: JSON) -> None:
            self.send(status, json.dumps(value).encode(), "application/json")

        def admitted(self) -> bool:
            if toy.token in ("", self.headers.get("Authorization", "")[7:]):
                return True
            self.send_json(401, {"error": "token: missing or wrong; send it as Bearer token"})
            return False

        def do_GET(self) -> None:
            path = urlsplit(self.path).path
            if path == "/v1/models":
                if self.admitted():
                    defaults = DecodingConfig().model_dump(mode="json")
                    names = [{"name": name, "default": name == "toys"} for name in SENTENCES]
                    rest = {"cnns": ["resnet18"], "attention": True, "decoding": defaults}
                    self.send_json(200, {"models": [name | rest for name in names]})
                return
            asset = assets.get(path)
            time.sleep(toy.slow_files.get(path, 0))
            if asset:
                self.send(200, asset.content, asset.media_type)
            else:
                self.send_json(404, {"error": "unknown"})

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            query = parse_qs(urlsplit(self.path).query, keep_blank_values=True)
            if not self.admitted():
                return
            toy.asked.append((query, body))
            time.sleep(toy.slow)
            if toy.failures:
                self.send_json(*toy.failures.pop(0))
            elif toy.no_maps and "maps" in query:
                self.send_json(422, {"error": toy.no_maps})
            elif toy.halves and "maps" in query:
                self.send_half(json.dumps(answer(query)).encode(), toy.halves.pop(0))
            else:
                self.send_json(200, answer(query))

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    toy.address = f"http://127.0.0.1:{server.server_port}/"
    yield toy
    server.shutdown()
    thread.join()
    server.server_close()
