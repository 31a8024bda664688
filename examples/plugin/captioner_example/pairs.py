"""A data format: a file `pairs.txt` with lines such as `train | dog.jpg | a dog runs`."""

from pathlib import Path

from captioner.data.dataset import Dataset, Options
from captioner.data.formats.collect import Collector, picture_folders
from captioner.system.text_files import read_lines

LOOKS_FOR = "a folder with pairs.txt"


def recognise(root: Path) -> bool:
    """Return whether a folder has this format."""
    return (root / "pairs.txt").is_file()


def load(root: Path, options: Options) -> Dataset:
    """Read the file; a line of another form is a problem of the data set."""
    file = root / "pairs.txt" if root.is_dir() else root
    collector = Collector(file.parent, "pairs", picture_folders(file.parent, options.images))
    for where, line in collector.lines(file, read_lines(file)):
        parts = [part.strip() for part in line.split("|", 2)]
        if len(parts) != 3:
            collector.problem("malformed line", where, f"not `split | file | caption`: {line}")
            continue
        split, name, caption = parts
        entry = collector.entries.get(name) or collector.add(name, name, split, where)
        if entry:
            collector.caption(entry, caption, where)
    return collector.dataset()
