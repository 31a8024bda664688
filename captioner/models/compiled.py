"""The fastest form of a frozen CNN on processors, on request: compiled by OpenVINO.

The kernels are oneDNN's, as in `fused`, but prepared once and in memory that is planned once.
OpenVINO rounds biases to bf16 as well; `balance` sees to it that this costs little.
"""

from __future__ import annotations

import copy
import os
import sys
import warnings
from collections import deque
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from captioner.errors import ConfigError, ModelError
from captioner.models.fused import round_weights
from captioner.models.preprocess import Preprocess

IMAGES = 4  # of one inference: fewer cost more each, and more leave the caches
HINT = "INFERENCE_PRECISION_HINT"
PRECISIONS = {torch.float32: "f32", torch.bfloat16: "bf16"}
RELUS = (functional.relu, torch.relu)  # as functions
SWITCH = "CAPTIONER_OPENVINO"  # in the environment
ON, OFF = ("1", "true", "yes", "on"), ("", "0", "false", "no", "off")


class Compiled:
    """Pixels to features by OpenVINO, each inference on one core."""

    def __init__(
        self, network: nn.Module, preprocess: Preprocess, dtype: torch.dtype, threads: int
    ) -> None:
        """Compile a network, and try it.

        Args:
            network: normalised images to features, float32, on the processor.
            preprocess: of its images.
            dtype: to compute in.
            threads: that may compute at a time; each has memory of its own.

        Raises:
            Exception: of whatever kind OpenVINO chooses, if it cannot.
        """
        shape = (IMAGES, 3, preprocess.crop_size, preprocess.crop_size)
        black = torch.zeros(shape, dtype=torch.uint8)
        # They are kept because the model shares memory with what it was made from.
        model, *self._kept = _convert(_Whole(network, preprocess).eval(), black)
        model.reshape(shape)
        precision = PRECISIONS[dtype]
        settings = {
            HINT: precision,
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": threads,
            "ENABLE_CPU_PINNING": False,  # the cores also read and search
        }
        self._compiled = _core().compile_model(model, "CPU", settings)
        if self._compiled.get_property(HINT).get_type_name() != precision:
            raise RuntimeError(f"this processor does not compute in {precision}")
        self._process = os.getpid()
        self._idle: list[Any] = []  # requests, of which a thread takes some
        self(black)

    def __call__(self, pixels: Tensor) -> Tensor:
        """Encode uint8 (B, 3, S, S) on the processor; return float32 (B, F)."""
        if os.getpid() != self._process:
            raise ModelError(
                f"OpenVINO does not survive a fork: start processes by multiprocessing's 'spawn', "
                f"or do without {SWITCH}=1"
            )
        threads = torch.get_num_threads()
        most = threads if threads == 1 else 2 * threads  # while some run, the next are laid ready
        idle, running = self._idle, deque[tuple[Any, Tensor, int]]()
        features: list[Tensor] = []

        def finish() -> None:
            request, _, count = running.popleft()
            request.wait()
            found = request.get_output_tensor(0).data.copy()
            features.append(torch.from_numpy(found)[:count])
            idle.append(request)

        for part in pixels.split(IMAGES):
            if len(running) == most:
                finish()
            # Always as many: what is computed for an image does not depend on its company.
            full = functional.pad(part, (0,) * 7 + (IMAGES - len(part),)).contiguous()
            try:
                request = idle.pop()
            except IndexError:
                request = self._compiled.create_infer_request()
            request.start_async([full.numpy()], share_inputs=True)
            running.append((request, full, len(part)))
        while running:
            finish()
        return torch.cat(features)


def compile_network(
    network: fx.GraphModule, preprocess: Preprocess, dtype: torch.dtype, threads: int
) -> Compiled | None:
    """Compile a CNN with OpenVINO.

    Args:
        network: folded, float32, on the processor; it is not changed.
        preprocess: of its images.
        dtype: to compute in.
        threads: that will encode at a time.

    Returns:
        None where OpenVINO is not turned on, knows no such dtype, or fails; the last with a
        warning.

    Raises:
        ConfigError: if it is turned on but not installed.
    """
    if not _turned_on() or dtype not in PRECISIONS:
        return None
    try:
        ready = network if dtype == torch.float32 else balance(network, dtype)
        return Compiled(ready, preprocess, dtype, threads)
    # Whatever it cannot do, PyTorch can.
    except Exception as error:
        reason = " ".join(str(error).split())
        print(
            f"warning: OpenVINO is left out ({SWITCH}=1 asked for it): {reason:.200}",
            file=sys.stderr,
        )
        return None


def other_arithmetic(was: str | None, now: str) -> str:
    """Say that features were computed otherwise before, and what turns that on or off.

    Args:
        was: the arithmetic of before; None: an older captioner kept no note of it.
        now: that of now.
    """
    if was is None:
        return f"arithmetic is {now}, and was not noted by the older captioner that began"
    by_openvino = ["OpenVINO" in each for each in (was, now)]
    hint = f" ({SWITCH}={by_openvino[0]:d} brings it back)" if len(set(by_openvino)) > 1 else ""
    return f"arithmetic was {was}, is {now}{hint}"


def _turned_on() -> bool:
    asked = os.environ.get(SWITCH, "")
    if asked.lower() not in ON + OFF:
        raise ConfigError(f"{SWITCH}: must be 1 or 0, given {asked!r:.60}")
    if asked.lower() in ON and not find_spec("openvino"):
        raise ConfigError(f"{SWITCH}={asked} needs pip install 'captioner[openvino]'")
    return asked.lower() in ON


@cache
def _core() -> Any:
    """Return this process's one core of OpenVINO, which stays as long as the process.

    Each core lays a stack for signal handlers, and when it goes it puts back the one that was
    there before. Of two that go in the order in which they came, the second puts back what the
    first has taken with it, and the next signal, such as Ctrl-C, crashes the process.
    """
    return import_module("openvino").Core()


class _Whole(nn.Module):
    """Normalisation and network as one."""

    def __init__(self, network: nn.Module, preprocess: Preprocess) -> None:
        super().__init__()
        self.network, self.preprocess = network, preprocess

    def forward(self, pixels: Tensor) -> Tensor:
        features: Tensor = self.network(self.preprocess.normalize(pixels))
        return features.flatten(1).float()


def _convert(network: nn.Module, example: Tensor) -> tuple[Any, ...]:
    """Bring a network into OpenVINO's form; also return what it was made from.

    As `openvino.convert_model` does, but that also reports its use to OpenVINO's makers.
    """
    frontends = import_module("openvino.frontend")
    decoders = import_module("openvino.frontend.pytorch.ts_decoder")
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # TorchScript's, about its own future
        traced = torch.jit.trace(network, example, check_trace=False)
    frontend = frontends.FrontEndManager().load_by_framework("pytorch")
    decoder = decoders.TorchScriptPythonDecoder(traced)
    loaded = frontend.load(decoder)
    return frontend.convert(loaded), traced, decoder, loaded


def balance(network: fx.GraphModule, dtype: torch.dtype) -> fx.GraphModule:
    """Round a CNN's weights such that filters keep their sums, and most biases are exact.

    Where one convolution alone reads another, a channel may be scaled by what makes its bias a
    number that `dtype` has, if the reader divides by the same: ReLU commutes with that (Nagel et
    al. 2019 scale channels so for other ends). ReLU6 does but for where it cuts, which moves by
    less than a rounding. The sums of filters are kept by `round_weights`.

    Args:
        network: folded, float32; it is not changed.
        dtype: to round to.

    Returns:
        The rounded network, in float32.
    """
    balanced = copy.deepcopy(network)
    layers = dict(balanced.named_modules())
    calls = [str(node.target) for node in balanced.graph.nodes if node.op == "call_module"]
    for node in balanced.graph.nodes:
        first, second = layers.get(str(node.target)), _reader(node, layers)
        if not isinstance(first, nn.Conv2d) or first.bias is None or second is None:
            continue
        if any(calls.count(name) > 1 for name in calls if layers[name] in (first, second)):
            continue  # it serves elsewhere too
        bias = first.bias.data.to(dtype).float()
        scale = torch.where(bias == 0, 1, bias / first.bias.data)
        first.bias.data = bias
        first.weight.data *= scale.view(-1, 1, 1, 1)
        of_outputs = second.groups > 1  # depthwise: one filter for each channel
        second.weight.data /= scale.view((-1, 1, 1, 1) if of_outputs else (1, -1, 1, 1))
    for layer in layers.values():
        if isinstance(layer, nn.Conv2d):
            layer.weight.data = round_weights(layer.weight.data, dtype).float()
    return balanced


def _reader(node: fx.Node, layers: dict[str, nn.Module]) -> nn.Conv2d | None:
    """Return the convolution that alone reads a node, perhaps through a ReLU."""
    while len(node.users) == 1:
        (node,) = node.users
        layer = layers.get(str(node.target)) if node.op == "call_module" else None
        if isinstance(layer, nn.Conv2d):
            whole = layer.groups == 1 or layer.groups == layer.in_channels == layer.out_channels
            return layer if whole else None
        if not isinstance(layer, nn.ReLU | nn.ReLU6) and node.target not in RELUS:
            return None
    return None
