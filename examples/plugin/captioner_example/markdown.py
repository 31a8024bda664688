"""An output format: a list in Markdown."""

import re
from typing import ClassVar

from captioner.captioning.records import Record
from captioner.captioning.writers import Writer


class Markdown(Writer):
    """A line such as `- dog.jpg: a dog runs` for each image."""

    several: ClassVar[bool] = False  # holds one caption of an image
    line: ClassVar = re.compile(rb"- .*: .*\n")  # by which captioner knows its own files

    def _write(self, record: Record) -> None:
        if record.captions:
            name = record.file_name.encode("unicode_escape").decode()  # keeps it on one line
            self.file.write(f"- {name}: {record.caption}\n")
