"""Pictures in object storage, with faults: nothing is lost, and nothing comes twice.

    python benchmarks/storage.py [--pictures 2000] [--shards 20] [--every 7] [--model DIR]
        [--only "tar shards"]

An S3 server (of moto) runs in this process. Requests go through a proxy on the loopback address.
It spoils each 7th request: one gets the answer 500, one is slow, one is cut in the middle. The
pictures lie in folders, tar shards, compressed shards and a ZIP archive, and a table names them.
Each is captioned from the disk and from the store, by the command. The rows must be the same bytes,
except for the folder in the names. The exit code is 1 if they are not.
"""

from __future__ import annotations

import argparse
import http.client
import logging
import os
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock, Thread

from common import describe_machine, noise_jpeg

BUCKET = "pictures"
FAULTS = ("500", "slow", "cut")
SLOW = 0.3  # seconds
KEYS = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "not-a-secret-of-anybody",
    "AWS_DEFAULT_REGION": "us-east-1",
}


@dataclass
class Traffic:
    """What went through the proxy; spoils each `every`th request, 0: none."""

    every: int = 0
    kinds: tuple[str, ...] = FAULTS
    requests: int = 0
    received: int = 0  # bytes of bodies that clients were sent
    faults: Counter[str] = field(default_factory=Counter)
    seen: list[tuple[str, str, str]] = field(default_factory=list)  # method, path, range
    lock: Lock = field(default_factory=Lock)

    def fault(self, method: str, path: str, part: str) -> str:
        """Count a request; return the fault that it gets, or an empty text."""
        with self.lock:
            self.requests += 1
            self.seen.append((method, path, part))
            if not self.every or self.requests % self.every:
                return ""
            kind = self.kinds[self.faults.total() % len(self.kinds)]
            self.faults[kind] += 1
            return kind

    def clear(self) -> None:
        """Forget what was counted."""
        self.requests = self.received = 0
        self.faults.clear()
        self.seen.clear()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    port: int  # of the server behind
    traffic: Traffic

    def _pass(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault = self.traffic.fault(self.command, self.path, self.headers.get("Range", ""))
        if fault == "500":
            self.send_response_only(500)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if fault == "slow":
            time.sleep(SLOW)
        behind = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        behind.request(self.command, self.path, body, dict(self.headers))
        answer = behind.getresponse()
        content = answer.read()
        behind.close()
        self.send_response_only(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("content-length", "connection", "transfer-encoding"):
                self.send_header(name, value)
        length = answer.getheader("Content-Length") if self.command == "HEAD" else len(content)
        self.send_header("Content-Length", str(length or 0))
        self.end_headers()
        if fault == "cut":
            content = content[: len(content) // 2]
            self.close_connection = True
        if self.command != "HEAD":
            with self.traffic.lock:
                self.traffic.received += len(content)
            self.wfile.write(content)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _pass

    def log_message(self, *_: object) -> None:
        pass


class _Proxy(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:  # clients that were cut hang up
        pass


@contextmanager
def object_storage() -> Iterator[tuple[str, str, Traffic]]:
    """Run an S3 server with a proxy before it; give its address, the proxy's, and the traffic."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    port = server.get_host_and_port()[1]
    traffic = Traffic()
    handler = type("Handler", (_Handler,), {"port": port, "traffic": traffic})
    proxy = _Proxy(("127.0.0.1", 0), handler)
    Thread(target=proxy.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{port}", f"http://127.0.0.1:{proxy.server_port}", traffic
    finally:
        proxy.shutdown()
        proxy.server_close()
        server.stop()


def upload(folder: Path, endpoint: str) -> int:
    """Put a folder's files into a new bucket; return their bytes."""
    import boto3

    client = boto3.client("s3", endpoint_url=endpoint)
    client.create_bucket(Bucket=BUCKET)
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    for path in files:
        client.upload_file(str(path), BUCKET, path.relative_to(folder).as_posix())
    client.close()
    return sum(path.stat().st_size for path in files)


def lay_out(folder: Path, pictures: int, shards: int) -> None:
    """Write pictures into folders, shards, compressed shards and a ZIP archive, and a table."""
    names = []
    for index in range(pictures):
        path = folder / "folders" / f"{index % shards:03}" / f"{index:06}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        noise_jpeg(path, seed=index, size=64)
        names.append(path)
    (folder / "shards").mkdir()
    (folder / "packed").mkdir()
    for shard in range(shards):
        own = names[shard::shards]
        for kind, mode in (("shards", "w"), ("packed", "w:gz")):
            end = ".gz" if kind == "packed" else ""
            with tarfile.open(folder / kind / f"{shard:05}.tar{end}", mode) as archive:
                for path in own:
                    archive.add(path, path.name)
    with zipfile.ZipFile(folder / "all.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in names:
            archive.write(path, path.name)
    rows = "".join(f"{path.relative_to(folder).as_posix()}\n" for path in names)
    (folder / "table.csv").write_text(f"file_name\n{rows}")


SOURCES = {
    "folders": ("folders/", "--recursive"),
    "pattern": ("folders/*/*.jpg",),
    "table": ("table.csv",),
    "tar shards": ("shards/*.tar",),
    "compressed shards": ("packed/*.tar.gz",),
    "ZIP": ("all.zip",),
}


def _captioned(words: list[str], output: Path, environment: dict[str, str], ranks: int) -> str:
    """Run the command; return its rows, without the folder in the names."""
    start = [sys.executable, "-m", "captioner"]
    if ranks > 1:
        launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
        start = [sys.executable, "-m", *launcher, "-m", "captioner"]
    given = [*start, "caption", *words, "--output", str(output), "--device", "cpu"]
    done = subprocess.run(given, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        print(done.stderr[-2000:])
    return output.read_text() if output.exists() else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pictures", type=int, default=2000)
    parser.add_argument("--shards", type=int, default=20)
    parser.add_argument("--every", type=int, default=7, help="spoil each so many-th request")
    parser.add_argument("--model", default="scenes")
    parser.add_argument("--only", choices=SOURCES, action="append")
    given = parser.parse_args()
    os.environ.update(KEYS)
    print(f"{describe_machine()}\n")
    print(
        "| source | processes | rows | failed | same bytes | requests | 500 | slow | cut | read |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    same = True
    with tempfile.TemporaryDirectory() as top, object_storage() as (server, proxy, traffic):
        folder = Path(top, "pictures")
        lay_out(folder, given.pictures, given.shards)
        upload(folder, server)
        traffic.every = given.every
        environment = {**os.environ, "AWS_ENDPOINT_URL": proxy}
        for kind in given.only or SOURCES:
            source, *options = SOURCES[kind]
            words = [*options, "--model", given.model]
            disk = Path(top, f"{kind}.jsonl")
            local = _captioned([str(folder / source), *words], disk, environment, 1)
            local = local.replace(f'"{folder}/', f'"s3://{BUCKET}/')
            for ranks in (1, 2) if kind == "tar shards" else (1,):
                traffic.clear()
                address = f"s3://{BUCKET}/{source}"
                output = Path(top, f"{kind}-{ranks}-s3.jsonl")
                rows = _captioned([address, *words], output, environment, ranks)
                failed = rows.count('"status": "error"')
                equal = rows == local and rows.count("\n") == given.pictures and not failed
                same = same and equal
                stored = sum(path.stat().st_size for path in folder.glob(source) if path.is_file())
                if not stored or kind == "table":  # the pictures that it names
                    stored += sum(path.stat().st_size for path in folder.rglob("*.jpg"))
                spoilt = " | ".join(f"{traffic.faults[fault]:,}" for fault in FAULTS)
                print(
                    f"| {kind} | {ranks} | {rows.count(chr(10)):,} | {failed:,} | "
                    f"{'yes' if equal else 'NO'} | {traffic.requests:,} | {spoilt} | "
                    f"{traffic.received / stored:.2f} |",
                    flush=True,
                )
    print("\nread: bytes from the store over the bytes of the pictures or archives.")
    sys.exit(not same)


if __name__ == "__main__":
    main()
