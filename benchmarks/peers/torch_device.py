"""PyTorch's device, what is set for it, and CUDA graphs."""

import functools
from collections.abc import Callable
from typing import Any

import torch

from charjax.host.cpu import available_cores

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
torch.set_num_threads(available_cores())


def describe() -> dict[str, Any]:
    """Returns PyTorch's device and the libraries that it comes with."""
    cuda = torch.cuda.is_available()
    return {
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "platform": DEVICE.type,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if cuda else None,
    }


def allow_tf32(allowed: bool) -> None:
    """Sets whether a GPU may compute float32 products in TensorFloat-32."""
    if not hasattr(torch.backends.cudnn, "rnn"):  # before PyTorch 2.9
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed
        return
    setting = "tf32" if allowed else "ieee"
    torch.backends.cuda.matmul.fp32_precision = torch.backends.cudnn.rnn.fp32_precision = setting


def warm_up(work: Callable[[], Any]) -> Any:
    """Runs work on the stream that graphs are captured on: libraries set themselves up once per stream."""
    if DEVICE.type != "cuda":
        return work()
    stream = _side_stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        result = work()
    torch.cuda.current_stream().wait_stream(stream)
    return result


def capture(work: Callable[[], Any]) -> Callable[[], None]:
    """Records work as a CUDA graph, runs it once, and returns what runs it again."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=_side_stream()):
        work()
    graph.replay()
    wait()
    return graph.replay


def wait() -> None:
    """Waits until the device is done."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


@functools.cache
def _side_stream() -> Any:
    return torch.cuda.Stream()
