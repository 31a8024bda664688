"""Count the lines of code of each room, at commits: without blank lines and comments.

python scripts/count_lines.py [COMMIT ...]
"""

from __future__ import annotations

import io
import subprocess
import sys
import tokenize
from collections import Counter

NO_CODE = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
}


def git(*words: str) -> str:
    """Return what git prints."""
    return subprocess.run(("git", *words), capture_output=True, text=True, check=True).stdout


def code_lines(source: str) -> int:
    """Return the number of lines that hold code or a docstring."""
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in NO_CODE:
            lines.update(range(token.start[0], token.end[0] + 1))
    return len(lines)


def main() -> None:
    """Print the lines of every room, most first."""
    for commit in sys.argv[1:] or ["HEAD"]:
        rooms: Counter[str] = Counter()
        for path in git("ls-tree", "-r", "--name-only", commit, "captioner").splitlines():
            if path.endswith(".py"):
                rooms[path.split("/")[1]] += code_lines(git("show", f"{commit}:{path}"))
        print(f"{commit}: {rooms.total():,} lines")
        for room, lines in rooms.most_common():
            print(f"  {lines:6,}  {room}")


if __name__ == "__main__":
    main()
