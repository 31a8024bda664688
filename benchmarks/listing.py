"""Memory, first caption and journal of a job over a very long listing, with a stub for the model.

    python benchmarks/listing.py [--names 10000000] [--shuffled] [--missing] [--folder FOLDER]

`captioner caption - --output` runs in a process of its own and reads generated names from stdin.
The names are different paths of one picture: seven folders, each a link to its own parent, give ten
million of them. Listing, looking for names that came before, journal and output are real; reading,
CNN and search are replaced by a stub that gives each name its own content and a caption of ten
words. A second run finds all names in the journal and writes the output again.

- memory: peak of the process, PyTorch included. Target: less than 2 GB.
- first caption: seconds from the start of the process, imports included, until the journal has the
  first batch. Target: less than 10 s.
- journal: microseconds of processor time for each image to look it up and to store it. Target: less
  than 20. The output reads each row once more, which is shown apart.

`--shuffled` gives the names in a random order, the worst case for the index of the journal.
`--missing` gives names without a file: every image fails. The exit code is 1 if a target is missed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

LINKS = 7
CAPTION = "a man in a red shirt is standing on a rock"
MOST_BYTES, MOST_SECONDS, MOST_MICROSECONDS = 2e9, 10.0, 20.0
SPREAD = 7368787  # a prime: its multiples visit all names in an order that looks random
SPENT: dict[str, float] = {}


def names(count: int, *, shuffled: bool, missing: bool) -> Iterator[str]:
    """Yield lines of names, from 0 to `count`."""
    last = "gone" if missing else "photo"
    for number in range(count):
        digits = f"{number * SPREAD % count if shuffled else number:0{LINKS}}"
        yield "/".join(
            (*(f"l{digit}" for digit in digits[-LINKS:]), f"{last}{digits[:-LINKS]}.jpg\n")
        )


def make_links(folder: Path, count: int) -> None:
    """Make the folders that are links, and the one picture."""
    for digit in range(10):
        (folder / f"l{digit}").symlink_to(".")
    for high in range(1 + (count - 1) // 10**LINKS):
        (folder / f"photo{high or ''}.jpg").write_bytes(b"stub")


def stub() -> SimpleNamespace:
    """Return what takes the place of a captioner."""
    import torch

    from captioner.text import Caption

    caption = [Caption(CAPTION, -12.345678, -1.234567, True)]

    def captions_of(
        batches: Iterable[Iterable[Any]], read: Callable[[Any], Any], *_: Any, **__: Any
    ):
        for batch in batches:
            results = [read(entry) for entry in batch]
            SPENT.setdefault("first", time.time())
            yield [(result, caption if pixels else None) for result, pixels in results]

    return SimpleNamespace(
        encoder=SimpleNamespace(arithmetic="stub", device=torch.device("cpu")),
        settings=lambda **_: None,
        captions_of=captions_of,
        device=torch.device("cpu"),
        name="stub",
    )


def timed(owner: Any, name: str, part: str) -> None:
    """Add the processor time of a method to a part of `SPENT`."""
    function = getattr(owner, name)
    clock = time.thread_time
    overhead = -sorted(clock() - clock() for _ in range(1000))[500]  # of a look at the clock

    def measured(*args: Any, **options: Any) -> Any:
        started = clock()
        try:
            return function(*args, **options)
        finally:
            SPENT[part] = SPENT.get(part, 0.0) + clock() - started - overhead

    setattr(owner, name, measured)


def run_job(args: argparse.Namespace) -> None:
    """Run one job in this process, and print what it took."""
    from captioner.captioner import Captioner
    from captioner.captioning import job, records
    from captioner.captioning.journal import Journal
    from captioner.cli import main
    from captioner.errors import ImageError

    def read(self: Any, item: Any, ticket: int, is_wanted: Callable[[bytes], bool]) -> Any:
        self.memory.leave(ticket)
        digest = hashlib.blake2b(item.name.encode(), digest_size=16).digest()
        record = records.Record(item.name, digest=digest, given_id=item.image_id)
        if isinstance(item.source, ImageError):
            return record.complete(item.source), None
        return record, is_wanted(digest)

    records.ItemReader.read = read
    model = stub()
    Captioner.load = lambda *_, **__: model  # type: ignore[method-assign]
    timed(Journal, "digests", "look up")
    timed(Journal, "add", "store")
    timed(job, "write_output", "output")
    timed(job, "_say_absent", "absent")
    if args.missing:  # ten million lines of stderr
        import captioner.cli.caption as command

        command._report = lambda _: None
    lines: Any = names(args.names, shuffled=args.shuffled, missing=args.missing)
    sys.stdin = lines
    started = time.thread_time()
    words = ["caption", "-", "--model", "scenes", "--output", "out.jsonl", "--device", "cpu"]
    try:
        main.main(words, standalone_mode=False)
    except SystemExit as end:
        assert args.missing or not end.code, end.code
    SPENT["all"] = time.thread_time() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"peak": peak, "spent": SPENT}))


def measure(args: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Run one job in a process of its own."""
    started = time.time()
    words = [sys.executable, str(Path(__file__).resolve()), "--child", "--names", str(args.names)]
    words += [f"--{name}" for name in ("shuffled", "missing") if getattr(args, name)]
    run = subprocess.run(words, cwd=folder, stdout=subprocess.PIPE, text=True, check=True)
    result = json.loads(run.stdout.splitlines()[-1])
    each = {part: 1e6 * seconds / args.names for part, seconds in result["spent"].items()}
    first = result["spent"].get("first", started) - started
    print(
        f"peak {result['peak'] / 1e9:.2f} GB, first caption {first:.1f} s; processor microseconds "
        f"for each image: look up {each.get('look up', 0):.1f}, store {each['store']:.1f}, output "
        f"{each['output']:.1f}, absent {each['absent']:.1f}, all {each['all']:.1f}; "
        f"{time.time() - started:.0f} s in all"
    )
    journal = each.get("look up", 0) + each["store"]
    return {"peak": result["peak"], "first": first, "journal": journal}


def main() -> None:
    """Measure both runs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--names", type=int, default=10_000_000)
    parser.add_argument("--shuffled", action="store_true")
    parser.add_argument("--missing", action="store_true")
    parser.add_argument("--folder", type=Path, help="for the journal; default: a temporary one")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        run_job(args)
        return
    from common import describe_machine

    print(f"{describe_machine()}; {args.names:,} names")
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        make_links(folder, args.names)
        results = [measure(args, folder) for _ in range(2)]
        size = sum(path.stat().st_size for path in folder.glob("out.jsonl*"))
        print(f"journal and output: {size / args.names:,.0f} bytes for each image")
    peak, first, journal = (max(r[key] for r in results) for key in ("peak", "first", "journal"))
    missed = peak >= MOST_BYTES or first >= MOST_SECONDS or journal >= MOST_MICROSECONDS
    print(
        f"peak {peak / 1e9:.2f} GB of 2, first {first:.1f} s of 10, journal {journal:.1f} us of 20"
    )
    sys.exit(missed)


if __name__ == "__main__":
    main()
