"""Train the bundled scenes model, `models/scenes`, from the bundled data: about two minutes.

python scripts/train_scenes_model.py
"""

from __future__ import annotations

from bundle import bundle

if __name__ == "__main__":
    settings = ["training.seed=0"]
    bundle("scenes", "scenes", settings, most_bytes=2_000_000, splits=("dev", "test"))
