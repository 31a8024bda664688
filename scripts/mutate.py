"""Mutation testing: change the code in one place at a time, and check that a test fails.

    python scripts/mutate.py [FILE ...] [--most 30] [--seed 0] [--jobs 1]

Tools from PyPI do not fit. mutmut 3 skips decorated functions (properties, static methods,
functions in inference mode). cosmic-ray starts Python for each mutant, and importing PyTorch takes
longer than the tests. This script forks from a process that has imported PyTorch.

Each mutant of `mutants.py` is written into a copy of the tree. The tests in `TESTS` run there until
one fails. The script prints surviving mutants that are not in `equivalent_mutants.tsv` (file,
function, change, reason why no test can notice), and then exits with code 1. `--most` limits the
mutants of a file; they are drawn at random.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from importlib import import_module
from importlib.util import cache_from_source
from pathlib import Path

import pytest
from mutants import mutants

ROOT = Path(__file__).parents[1]
EXPLAINED = Path(__file__).with_name("equivalent_mutants.tsv")
OPTIONS = ("-x", "-p", "no:cacheprovider", "-W", "ignore::pytest.PytestAssertRewriteWarning")
MEMORY = 8 << 30  # bytes; the limit of a mutant
SEARCH = ("search/test_beam_search.py", "search/test_greedy_and_sampling.py")
NO_NUMBERS = "test_no_numbers.py::test_a_step_without_numbers_spoils_its_image_alone"
OTHERS = "test_no_numbers.py::test_the_others_of_a_batch_keep_their_captions"
METRICS = ("metrics/test_metric_parity.py", "metrics/test_metric_properties.py")
QUICK = "regnet_y_400mf or not (every_name or fast_form and not (squeezenet1_1 or resnet18))"
ROOM = "test_update or the_room_a_decoder_takes"
JOB = ("captioning/test_job.py", "not (twenty_random or flipped_bit)")
WORDED = "not (every_format or a_job or bad_wording_is)"
BUILT = "regnet_y_400mf or squeezenet1_1 or swin_t or build or built or backbone or kinds"
BUILT += " or auxiliary"
TESTS: dict[str, tuple[str, ...]] = {  # file -> test files, optionally with a -k expression
    "training/update.py": ("training/test_update.py", "test_config_bounds.py", ROOM),
    "training/bptt.py": ("training/test_bptt.py",),
    "training/loss.py": ("training/test_loss.py", "training/test_bptt.py"),
    "encoder/encoder.py": ("encoder/test_encoder.py", "encoder/test_side_by_side.py", QUICK),
    "encoder/backbones.py": ("encoder/test_encoder.py", BUILT),
    "encoder/folding.py": ("encoder/test_folding.py",),
    "search/beam.py": (*SEARCH[:1], NO_NUMBERS),
    "search/common.py": ("search/test_search_common.py", *SEARCH, NO_NUMBERS),
    "search/top_tokens.py": ("search/test_search_common.py", *SEARCH),
    "search/sampling.py": (*SEARCH[1:], NO_NUMBERS, OTHERS),
    "decoder/neighbours.py": ("decoder/test_neighbours.py",),
    "metrics/bleu.py": METRICS,
    "metrics/rouge.py": METRICS,
    "metrics/cider.py": METRICS,
    "metrics/bootstrap.py": ("metrics/test_bootstrap.py",),
    "metrics/scores.py": (METRICS[1], "not (order_of or range or reference_ or rewards)"),
    "captioning/job.py": JOB,
    "captioning/journal.py": ("captioning/test_journal.py", *JOB),
    "captioning/wording.py": ("captioning/test_wording.py", WORDED),
    "captioning/sidecars.py": ("captioning/test_sidecars.py", "captioning/test_writers.py"),
}


def outcome(tree: Path, name: str, limit: float) -> str:
    """Run the tests of a file in a fork; return "killed", "timed out" or "alive"."""
    child = os.fork()
    if not child:
        os.setsid()
        os.chdir(tree)
        sys.path[:0] = [str(tree), str(tree / "tests")]
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
        for stream in range(3):
            os.dup2(os.open(os.devnull, os.O_RDWR), stream)
        tests = [f"tests/{each}" if ".py" in each else f"-k {each}" for each in TESTS[name]]
        os._exit(int(pytest.main([*OPTIONS, *tests])))
    end, done, status = time.monotonic() + limit, 0, 0
    while not done and time.monotonic() < end:
        time.sleep(0.02)
        done, status = os.waitpid(child, os.WNOHANG)
    with suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # also the processes it started
    if not done:
        os.waitpid(child, 0)
        return "timed out"
    return "killed" if status else "alive"


def work(name: str, texts: Sequence[str], numbers: Sequence[int], pipe: int) -> None:
    """Test some mutants of a file and write their outcomes to the pipe."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        for part in ("captioner", "tests", "configs", "data"):
            shutil.copytree(ROOT / part, tree / part, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", tree)
        target = tree / "captioner" / name
        started = time.monotonic()
        sys.dont_write_bytecode = False  # compile the tests once
        if outcome(tree, name, 600) != "alive":
            sys.exit(f"{name}: the tests fail without a mutation")
        sys.dont_write_bytecode = True
        Path(cache_from_source(str(target))).unlink()  # Python could load it for a mutant
        limit = 20 + 5 * (time.monotonic() - started)
        for number in numbers:
            target.write_text(texts[number])
            os.write(pipe, f"{number} {outcome(tree, name, limit)}\n".encode())


def outcomes(name: str, texts: Sequence[str], jobs: int) -> Iterator[tuple[int, str]]:
    """Yield the index and the outcome of each mutant of a file."""
    read, write = os.pipe()
    for job in range(jobs):
        if not os.fork():
            work(name, texts, range(job, len(texts), jobs), write)
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as results:
        for line in results:
            number, _, result = line.strip().partition(" ")
            yield int(number), result
    if any(os.wait()[1] for _ in range(jobs)):
        sys.exit(1)


def main() -> None:
    """Test the mutants of the given files; print the survivors and the counts."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("files", nargs="*", help=", ".join(TESTS))
    parser.add_argument("--most", type=int, default=30, help="maximum number of mutants per file")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random choice")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    given = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1", "CI": "1"}
    os.environ |= {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    sys.path.insert(0, str(ROOT))
    for module in ("captioner.training.run", "captioner.__main__", "hypothesis", "torchvision"):
        import_module(module)  # their dependencies stay imported; captioner does not
    for module in [each for each in sys.modules if each.partition(".")[0] == "captioner"]:
        del sys.modules[module]
    explained = [tuple(line.split("\t")[:3]) for line in EXPLAINED.read_text().splitlines()]
    total: Counter[str] = Counter()
    for name in given.files or TESTS:
        every = mutants((ROOT / "captioner" / name).read_text())
        reasons = {row[1:] for row in explained if row[0] == name}
        for change in sorted(reasons - every.keys()):
            print(name, *change, "in equivalent_mutants.tsv, but there is no such mutant", sep="\t")
        drawn = random.Random(given.seed).sample(list(every), min(given.most, len(every)))
        counts: Counter[str] = Counter()
        for number, result in outcomes(name, [every[each] for each in drawn], given.jobs):
            change = drawn[number]
            reason = " explained" * (change in reasons)
            counts[result + reason] += 1
            if (result == "killed") == bool(reason) or result == "timed out":
                print(name, *change, result + reason, sep="\t", flush=True)
        print(f"{name}: {len(every)} mutants, {len(drawn)} tested: {_summary(counts)}", flush=True)
        total += counts
    print(f"all: {_summary(total)}")
    sys.exit(total["alive"] > 0)


def _summary(counts: Counter[str]) -> str:
    return ", ".join(f"{number} {result}" for result, number in sorted(counts.items()))


if __name__ == "__main__":
    main()
