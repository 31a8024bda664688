"""No test leaves a process behind."""

import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from processes import ended

# A process of its own session, whose parent is gone, as a worker of torchrun.
ORPHAN = """
import subprocess, sys
child = subprocess.Popen(
    [sys.executable, "-c", "import time; time.sleep(600)"],
    start_new_session=True,
    stdout=subprocess.DEVNULL,
)
print(child.pid, flush=True)
"""


def test_what_a_failing_test_started_ends_with_it():
    with pytest.raises(AssertionError), ended():
        done = subprocess.run(
            [sys.executable, "-c", ORPHAN], stdout=subprocess.PIPE, text=True, check=True
        )
        orphan = int(done.stdout)
        assert psutil.pid_exists(orphan)
        raise AssertionError
    for _ in range(100):
        if not psutil.pid_exists(orphan) or psutil.Process(orphan).status() == "zombie":
            return
        time.sleep(0.05)
    raise AssertionError("it still runs")


def test_files_that_start_processes_end_them():
    here = Path(__file__).parent
    for path in here.rglob("test_*.py"):
        text = path.read_text(encoding="utf-8")
        if path.parent.name != "gpu" and ("Popen(" in text or "torch.distributed.run" in text):
            known = path == Path(__file__) or "ends_what_it_starts" in text
            assert known or "from torch.distributed.run import" in text, path
