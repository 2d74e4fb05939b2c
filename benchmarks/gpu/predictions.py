"""What a training step should take on an H100, by arithmetic alone: python -m benchmarks.gpu.predictions.

For every point of the grid: the least that the device allows (a step's operations at 790 TFLOP/s, what large bfloat16
products were seen to reach on such a chip, or its bytes, whichever takes longer), and what the cost model says of the
implementations. They are written down before anything is measured, so that measurements have something to contradict.
"""

import itertools
from collections.abc import Sequence
from typing import Any

from benchmarks import cost_model
from benchmarks.common.options import add_results, make_parser
from benchmarks.common.problem import SEQ_LEN, VOCAB
from benchmarks.common.report import markdown
from benchmarks.common.results import ResultsFile

MATMUL_FLOPS = 790e12
# Per time step, as compiled for an H100 (docs/performance.md), by the number of layers.
LAUNCHES = {"wavefront": {1: 6.0, 2: 7.2, 3: 9.6}, "mosaic_gpu": {1: 0.5, 2: 0.73, 3: 1.0}}
# Forward and backward, of cuDNN's persistent kernels: 5.2 ms for 1024 steps of 768 units and 16 sequences on an H100
# (Beck et al. 2024, FlashRNN).
CUDNN_STEP = 5.1e-6


def predict(hidden_dim: int, hidden_layers: int, batch_size: int) -> dict[str, Any]:
    """Returns the sizes, and the seconds of a step: "least", by implementation, and "cudnn"."""
    sizes = {"hidden_dim": hidden_dim, "hidden_layers": hidden_layers, "batch_size": batch_size, "seq_len": SEQ_LEN}
    device = cost_model.H100
    flops = cost_model.training_flops(hidden_dim, hidden_layers, VOCAB, batch_size * SEQ_LEN)
    least = max(flops / MATMUL_FLOPS, cost_model.training_bytes(*sizes.values())[1] / device.memory)
    found: dict[str, Any] = {**sizes, "least": least}
    for name, launches in LAUNCHES.items():
        seconds = cost_model.training_seconds(
            device, launches_per_time_step=launches[hidden_layers], cycles=None, sizes=sizes, vocab_size=VOCAB
        )
        if name == "mosaic_gpu":
            if hidden_dim > max(cost_model.HOPPER_STEP):
                continue
            seconds += cost_model.hopper_kernel_seconds(*sizes.values())
        found[name] = seconds
    work = flops / (device.flops * device.efficiency)
    found["cudnn"] = max(CUDNN_STEP * hidden_layers * SEQ_LEN, work)
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the table and writes the file."""
    parser = make_parser("gpu.predictions", __doc__)
    add_results(parser)
    arguments = parser.parse_args(argv)
    rows = [
        predict(hidden, layers, batch)
        for hidden, layers, batch in itertools.product((128, 256, 512, 1024), (1, 2, 3), (64, 256, 1024))
    ]
    names = ("least", *LAUNCHES, "cudnn")
    lines = [
        [*(str(row[name]) for name in ("hidden_dim", "hidden_layers", "batch_size"))]
        + [f"{1e3 * row[name]:.2f}" if name in row else "-" for name in names]
        for row in rows
    ]
    print(markdown(("H", "L", "B", *(f"{name}, ms" for name in names)), lines))
    note = "arithmetic and assumptions; nothing ran"
    print("written:", ResultsFile(arguments.results, "gpu.predictions-h100", note=note, rows=rows).save())


if __name__ == "__main__":
    main()
