"""Counts the cycles of a training step with the TPU kernels from what the compiler writes; nothing runs.

XLA writes its own estimate of cycles beside every operation except these kernels; for them the compiler leaves a
listing of the instructions, one bundle per cycle. docs/performance.md says what such a count is worth.
"""

import os
import re
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from charjax.ops.lstm.experimental.mosaic_tpu.tiling import tiling

# Bytes per cycle from a chip's memory: 819 GB/s at 1.5 GHz, 1640 GB/s at 1.75 GHz.
BYTES_PER_CYCLE = {"v5e": 546, "v6e": 937}
BYTES = {"f32": 4, "bf16": 2, "s32": 4}
# Values that the forward and the backward kernel read and write per step, row and unit.
BLOCKS = {"lstm_forward": 6, "lstm_backward": 11}


class Listing(NamedTuple):
    """Counts of a kernel's bundles, by how often they run.

    Attributes:
        per_step: in the loop over the steps of a block.
        per_turn: in the loop over the grid, outside that loop; branches count as taken, loops that copy as one trip.
        once: outside both.
        hbm_bytes: of operands and results in the chip's memory; XLA has put the others into the core's.
    """

    per_step: int
    per_turn: int
    once: int
    hbm_bytes: int


def read_listing(text: str) -> Listing:
    """Counts the bundles of a listing; the compiler marks each with the depth of its loop (`>`).

    Raises:
        SystemExit: the kernel has no loop over steps.
    """
    per_loop: list[list[str]] = [[]]
    once = turn = depth = 0
    for mark, loops, bundle in re.findall(r"^ *0?x?[0-9a-f]+ ([A-Z]{2})? *: (>*) ?(\{.*)", text, re.M):
        # Bundles that only wait are not marked; they belong to the loop of the last one that is.
        depth = depth if bundle.strip() == "{}" else len(loops)
        if mark == "LB" and depth == 2:
            per_loop.append([])
        if depth == 2:
            per_loop[-1].append(bundle)
        once, turn = once + (depth == 0), turn + (depth == 1)
    steps = [len(loop) for loop in per_loop if any("vmatmul" in bundle for bundle in loop)]
    if len(steps) != 1:
        raise SystemExit("the kernel has no loop over steps; use longer sequences")
    arrays = re.findall(r"inlined_call_operand\.hbm \[shape: (\w+)\[([\d,]+)\]", text)
    hbm_bytes = sum(BYTES[kind] * int(np.prod([int(n) for n in shape.split(",")])) for kind, shape in arrays)
    return Listing(steps[0], turn + sum(map(len, per_loop)) - steps[0], once, hbm_bytes)


def leave_listings(folder: Path) -> None:
    """Makes the compiler write its listings to a folder; call it before the compiler is loaded."""
    os.environ["LIBTPU_INIT_ARGS"] = (
        f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true --xla_jf_dump_llo_pass_label_regex=final_bundles"
    )


def listings(folder: Path) -> dict[str, str]:
    """Returns the listings in the folder, by the kernels' names."""
    paths = folder.glob("*-lstm_*-final_bundles.txt")
    return {match[1]: path.read_text() for path in paths if (match := re.search(r"-(lstm_\w+\.\d+)-", path.name))}


def kernel_names(hlo: str) -> list[str]:
    """Returns the kernels that a compiled program calls, once per call."""
    return re.findall(r"^ *%?(lstm_\w+\.\d+) = .*tpu_custom_call", hlo, re.M)


def kernel_cycles(
    names: list[str], texts: dict[str, str], *, chip: str, batch_size: int, seq_len: int, hidden_dim: int, dtype: str
) -> list[dict[str, Any]]:
    """Counts each call of a kernel on one chip ("v5e"), from the compiler's listings."""
    bandwidth, kernels = BYTES_PER_CYCLE.get(chip), []
    for name in names:
        direction = name.split(".")[0]
        # The compiler lists identical kernels once.
        text = texts.get(name) or next(text for key, text in texts.items() if key.startswith(direction))
        listing = read_listing(text)
        unit_bytes = jnp.dtype(dtype).itemsize * BLOCKS[direction]
        cut = tiling(seq_len, batch_size, hidden_dim, jnp.dtype(dtype), unit_bytes)
        turns, steps = cut.tiles * cut.blocks, cut.tiles * seq_len
        bundles = listing.once + turns * listing.per_turn + steps * listing.per_step
        moved = round(listing.hbm_bytes / bandwidth) if bandwidth else None
        count = {"name": name, "cycles": max(bundles, moved or 0), "bundles": bundles, "memory_cycles": moved}
        kernels.append({**count, "turns": turns, **listing._asdict()})
    return kernels
