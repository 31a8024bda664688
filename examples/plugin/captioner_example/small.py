"""A backbone: a small CNN."""

from torch import nn


def small(width: int = 16) -> nn.Module:
    """Return a CNN from images, (B, 3, S, S), to scores of 10 classes; its last layer is linear.

    captioner takes the input of the last layer, here 2 * width numbers, as the features.
    """
    return nn.Sequential(
        nn.Conv2d(3, width, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(2 * width, 10),
    )
