"""Train the bundled photo model, `models/photos`, from Flickr8k: about ten minutes on two cores.

    python scripts/train_photos_model.py FLICKR8K WEIGHTS

FLICKR8K is a folder in one of the data set's layouts. WEIGHTS is the state dict of the ONNX model
zoo's `mobilenetv2-1.0` (Apache-2.0) under torchvision's names, without the classifier.

The recipe is `configs/flickr8k-attention.yaml` with this one CNN, and captions from the plain view.
The dev split chose seed and search, and chooses the epoch.
"""

from __future__ import annotations

import json
import sys

from bundle import ROOT, bundle

# The first block of this MobileNetV2 has an expansion of 1, which torchvision builds only for a
# number other than 1; the strides are not where torchvision has them.
BLOCKS = [
    [1.01, 16, 1, 1],
    [6, 24, 2, 2],
    [6, 32, 3, 2],
    [6, 64, 4, 1],
    [6, 96, 3, 2],
    [6, 160, 3, 2],
    [6, 320, 1, 1],
]
NOTICE = """captioner's photo model

The frozen CNN in model/model.safetensors is the MobileNetV2 of the ONNX model zoo
(mobilenetv2-1.0), licensed under the Apache License, Version 2.0. Changes: no classifier,
names of torchvision, batch normalisation as trained, weights rounded to fp16.

The decoder was trained on the train split of Flickr8k (Hodosh, Young and Hockenmaier 2013),
which is for research and education. No photograph and no caption of it is in this folder; the
file holds numbers computed from groups of words of its captions, by which neighbours vote.
"""

if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    data, weights = sys.argv[1:]
    cnn = {
        "backbone": "mobilenet_v2",
        "weights": weights,
        "builder_args": {"inverted_residual_setting": BLOCKS},
    }
    settings = [
        f"data.root={data}",
        f"encoder.cnns={json.dumps([cnn])}",
        "encoder.mirrored=false",
        "training.seed=0",
        "decoding.repeat_penalty=1",
    ]
    bundle("photos", "flickr8k-attention", settings, most_bytes=24_000_000)
    (ROOT / "models/photos/NOTICE").write_text(NOTICE, encoding="utf-8")
