"""Prepare what docs/try.md needs in a visitor's browser: a model, its search, and a runtime.

    python scripts/try_page.py FOLDER

FOLDER gets the bundled photo model, exported with 8-bit weights and compressed, its searches
`caption.py` and `caption.js`, three drawn pictures, and onnxruntime-web from npm. Without npm or
the packages of `captioner[export]`, one line says so, and the page says that it has no model.
"""

import gzip
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from captioner.captioner import Captioner
from captioner.config import bundled
from captioner.errors import CaptionerError
from captioner.exporting.write import export

RUNTIME = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")


def fetch_runtime(folder: Path) -> None:
    """Write onnxruntime-web into a folder."""
    with tempfile.TemporaryDirectory() as name:
        command = ["npm", "pack", "--silent", "onnxruntime-web@1"]
        subprocess.run(command, cwd=name, check=True, capture_output=True)
        [package] = Path(name).glob("*.tgz")
        with tarfile.open(package) as archive:
            for file in RUNTIME:
                content = archive.extractfile(f"package/dist/{file}")
                assert content
                (folder / file).write_bytes(content.read())


def write_model(folder: Path) -> None:
    """Write the exported model and the JavaScript of its README into a folder."""
    with tempfile.TemporaryDirectory() as top:
        programs = export(Captioner.load("photos", "cpu"), Path(top) / "photos", int8=True)
        for file in programs.glob("*.onnx"):
            packed = gzip.compress(file.read_bytes(), mtime=0)
            (folder / f"{file.name}.gz").write_bytes(packed)
        for name in ("captioner.json", "caption.py"):
            shutil.copy(programs / name, folder)
        readme = (programs / "README.md").read_text(encoding="utf-8")
    [script] = re.findall(r"^```js\n(.*?)^```", readme, re.MULTILINE | re.DOTALL)
    (folder / "caption.js").write_text(script, encoding="utf-8")


def main() -> None:
    """Fill the folder, or leave none."""
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    folder = Path(sys.argv[1])
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        fetch_runtime(folder)
        write_model(folder)
        for name in ("beach", "dog", "skier"):
            shutil.copy(bundled(f"data/pictures/{name}.jpg"), folder)
    except (OSError, subprocess.SubprocessError, CaptionerError) as error:
        shutil.rmtree(folder)
        print(f"the page that captions in the browser gets no model: {error}", file=sys.stderr)


if __name__ == "__main__":
    main()
