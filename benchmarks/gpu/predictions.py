"""What a training step should take on an H200, by arithmetic: python -m benchmarks.gpu.predictions.

For every point of the grid: the least that the device allows (the step's operations, or the bytes that it cannot
avoid, whichever takes longer), what `wavefront` takes if all sizes are like the one that was profiled, what
`mosaic_gpu` should take, and cuDNN. They are written down before they are measured, so that measurements have something
to contradict.

A matmul and the passes over its result take turns, so their times add up; no launch takes less than `LAUNCH`.
"""

import itertools
from collections.abc import Sequence
from typing import Any

from benchmarks import cost_model
from benchmarks.common.options import add_results, make_parser
from benchmarks.common.problem import SEQ_LEN, VOCAB
from benchmarks.common.report import markdown
from benchmarks.common.results import ResultsFile

# Measured on an H200 (gpu-limits-2026-11-27-2306-NVIDIA-H200): a large matmul and a large copy; the matmuls of
# 3 x 512 with 1024 sequences; and the kernels of 2 x 512 with 64 sequences, a launch and all else.
MATMUL, COPY = 767e12, 4.2e12
STEP_MATMUL = 580e12
LAUNCH = 2.3e-6
# In both implementations: gradients' norms, Adam, the head and the loss.
LAUNCHES_OUTSIDE = 110
# Bytes per unit, sequence and time step: what the device could not avoid; what XLA's passes in `wavefront` amount to
# at the measured copy speed; and what the kernels of `mosaic_gpu` read and write.
BYTES = {"least": 40, "wavefront": 294, "mosaic_gpu": 134}
# Launches per time step, forward and backward.
LAUNCHES = {"wavefront": 7.2, "mosaic_gpu": 4.0}
# Of cuDNN's persistent kernels: 5.2 ms for 1024 steps forward and backward, 768 units, 16 sequences, on an H100 (Pöppel
# et al. 2024, FlashRNN).
CUDNN_STEP = 5.1e-6


def predict(hidden_dim: int, hidden_layers: int, batch_size: int) -> dict[str, Any]:
    """Returns the sizes, and the seconds of a step: "least", by implementation, and "cudnn"."""
    sizes = {"hidden_dim": hidden_dim, "hidden_layers": hidden_layers, "batch_size": batch_size}
    chars = batch_size * SEQ_LEN
    units, diagonals = chars * hidden_layers * hidden_dim, SEQ_LEN + hidden_layers - 1
    flops = cost_model.training_flops(hidden_dim, hidden_layers, VOCAB, chars)
    # Both multiply with a block of zeros or of one-hot rows, so that all layers have the same shape.
    padded = 3 * 8 * hidden_dim * max(2 * hidden_dim, hidden_dim + VOCAB) * hidden_layers * chars
    found: dict[str, Any] = {**sizes, "least": max(flops / MATMUL, BYTES["least"] * units / COPY)}
    for name, launches in LAUNCHES.items():
        work = padded / STEP_MATMUL + BYTES[name] * units / COPY
        found[name] = max(work, launches * diagonals * LAUNCH) + LAUNCHES_OUTSIDE * LAUNCH
    found["cudnn"] = max(CUDNN_STEP * hidden_layers * SEQ_LEN, flops / STEP_MATMUL)
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the table and writes the file."""
    parser = make_parser("gpu.predictions", __doc__)
    add_results(parser)
    arguments = parser.parse_args(argv)
    grid = itertools.product((128, 256, 512, 1024), (1, 2, 3), (64, 256, 1024))
    rows = [predict(*sizes) for sizes in grid]
    names = ("least", *LAUNCHES, "cudnn")
    lines = [
        [*(str(row[name]) for name in ("hidden_dim", "hidden_layers", "batch_size"))]
        + [f"{1e3 * row[name]:.2f}" for name in names]
        for row in rows
    ]
    print(markdown(("H", "L", "B", *(f"{name}, ms" for name in names)), lines))
    note = "arithmetic and assumptions, checked at one size for `wavefront`; nothing ran"
    print("written:", ResultsFile(arguments.results, "gpu.predictions-h200", note=note, rows=rows).save())


if __name__ == "__main__":
    main()
