"""What a training step with the kernels for TPUs would cost, as counted by the compiler; nothing runs on any TPU.

    pip install "jax[tpu]"
    python -m benchmarks.tpu_kernel
    python -m benchmarks.tpu_kernel --topology v6e:2x2 --hidden-dim 1024 --dtype float32

The step is compiled for the chips of a topology. XLA writes its own estimate of cycles beside every operation but
these kernels, for which the compiler leaves the listing of their instructions, one bundle to a cycle. NOTES.md says
what such a count is worth.
"""

import argparse
import json
import os
import re
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding

from charjax import CharLSTM, make_train_step
from charjax.ops.lstm.mosaic_tiling import tiling
from charjax.sharding import DATA_AXIS, OVER_STREAMS, REPLICATED
from charjax.streams import Streams
from charjax.train_state import abstract_train_state

VOCAB = 128
# Bytes that the memory of a chip gives in a cycle: 819 GB/s at 1.5 GHz.
BYTES_PER_CYCLE = {"v5e": 546}
BYTES = {"f32": 4, "bf16": 2, "s32": 4}
# Per step, row and unit: what the forward and the backward kernel read and write, float32 values and operands.
BLOCKS = {"lstm_forward": 6, "lstm_backward": 11}


class Listing(NamedTuple):
    """Bundles of a kernel, by how often they run.

    Attributes:
        per_step: in the loop over the steps of a block.
        per_turn: in the loop over the grid, without that loop; branches count as taken, loops that copy as one trip.
        once: outside of both.
        hbm_bytes: operands and results that lie in the chip's memory; the rest XLA has put into the core's already.
    """

    per_step: int
    per_turn: int
    once: int
    hbm_bytes: int


def read_listing(text: str) -> Listing:
    """Counts the bundles of a listing as the compiler writes it, each marked with the depth of its loop (`>`)."""
    per_loop: list[list[str]] = [[]]
    once = turn = depth = 0
    for mark, loops, bundle in re.findall(r"^ *0?x?[0-9a-f]+ ([A-Z]{2})? *: (>*) ?(\{.*)", text, re.M):
        # Bundles that only wait are not marked; they belong to the loop of the last one that does something.
        depth = depth if bundle.strip() == "{}" else len(loops)
        if mark == "LB" and depth == 2:
            per_loop.append([])
        if depth == 2:
            per_loop[-1].append(bundle)
        once, turn = once + (depth == 0), turn + (depth == 1)
    steps = [len(loop) for loop in per_loop if any("vmatmul" in bundle for bundle in loop)]
    if len(steps) != 1:
        raise SystemExit("the kernel has no loop over steps: take sequences of more")
    arrays = re.findall(r"inlined_call_operand\.hbm \[shape: (\w+)\[([\d,]+)\]", text)
    hbm_bytes = sum(BYTES[kind] * int(np.prod([int(n) for n in shape.split(",")])) for kind, shape in arrays)
    return Listing(steps[0], turn + sum(map(len, per_loop)) - steps[0], once, hbm_bytes)


def step_cycles(hlo: str) -> tuple[int, list[str]]:
    """Of the compiled program's loop over training steps: XLA's estimate without kernels, the kernels' names."""
    bodies = re.findall(r"^%?[\w.\-]+ \(.*?\{\n(.*?)^\}", hlo, re.S | re.M)
    body = next(text for text in bodies if "tpu_custom_call" in text)
    kernels = re.findall(r"^ *%?(lstm_\w+\.\d+) = .*tpu_custom_call", body, re.M)
    return sum(int(n) for n in re.findall(r'"estimated_cycles":"(\d+)"', body)), kernels


def compile_step(mesh: Mesh, args: argparse.Namespace) -> str:
    """The training step's program, compiled for the mesh."""
    model = CharLSTM(VOCAB, args.hidden_dim, args.hidden_layers, implementation="mosaic_tpu", dtype=args.dtype)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3))
    batch = args.batch_size * mesh.size
    # Parameters are drawn on this machine, which has no TPU: another implementation has the same.
    state = abstract_train_state(model.clone(implementation="scan"), optimizer, batch_size=batch, mesh=mesh)
    placed = NamedSharding(mesh, OVER_STREAMS)
    number = jax.ShapeDtypeStruct((batch,), np.int32, sharding=placed)
    ids = jax.ShapeDtypeStruct((batch, 8 * args.seq_len + 1), np.uint8, sharding=placed)
    step: Any = make_train_step(model, optimizer, seq_len=args.seq_len, mesh=mesh)
    times = jax.ShapeDtypeStruct((), np.int32, sharding=NamedSharding(mesh, REPLICATED))
    return step.__wrapped__.lower(state, Streams(ids, number, number), times).compile().as_text()  # type: ignore[no-any-return]


def estimate(hlo: str, listings: dict[str, str], args: argparse.Namespace) -> dict[str, Any]:
    """Cycles of a training step on one chip; `listings` are by the kernels' names."""
    rest, names = step_cycles(hlo)
    bandwidth = BYTES_PER_CYCLE.get(args.topology.split(":")[0])
    dtype, kernels = jnp.dtype(args.dtype), []
    for name in names:
        direction = name.split(".")[0]
        # The compiler lists kernels that are the same once.
        text = listings.get(name) or next(text for key, text in listings.items() if key.startswith(direction))
        listing = read_listing(text)
        floats, operands = BLOCKS[direction]
        unit_bytes = 4 * floats + dtype.itemsize * operands
        cut = tiling(args.seq_len, args.batch_size, args.hidden_dim, dtype, unit_bytes)
        turns, steps = cut.tiles * cut.blocks, cut.tiles * args.seq_len
        bundles = listing.once + turns * listing.per_turn + steps * listing.per_step
        moved = round(listing.hbm_bytes / bandwidth) if bandwidth else None
        kernels.append(
            {
                "name": name,
                "cycles": max(bundles, moved or 0),
                "bundles": bundles,
                "memory_cycles": moved,
                "turns": turns,
            }
            | listing._asdict()
        )
    cycles = rest + sum(kernel["cycles"] for kernel in kernels)
    return {"sizes": vars(args), "cycles": cycles, "xla_cycles_of_the_rest": rest, "kernels": kernels}


def main() -> None:
    """Compiles and prints the estimate as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--topology", default="v5e:2x2")
    parser.add_argument("--hidden-dim", type=int, default=512)
    parser.add_argument("--hidden-layers", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=64, help="per chip")
    parser.add_argument("--seq-len", type=int, default=100)
    parser.add_argument("--dtype", default="bfloat16")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        # Without the first, the plug-in looks for a machine of the cloud.
        os.environ["TPU_SKIP_MDS_QUERY"] = "1"
        os.environ["LIBTPU_INIT_ARGS"] = (
            f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true --xla_jf_dump_llo_pass_label_regex=final_bundles"
        )
        devices = topologies.get_topology_desc(platform="tpu", topology_name=args.topology).devices
        hlo = compile_step(Mesh(np.array(devices), (DATA_AXIS,), axis_types=(AxisType.Auto,)), args)
        listings = {}
        for path in Path(folder).glob("*-lstm_*-final_bundles.txt"):
            name = re.search(r"-(lstm_\w+\.\d+)-", path.name)
            listings[name[1] if name else path.name] = path.read_text()
    print(json.dumps(estimate(hlo, listings, args), indent=1))


if __name__ == "__main__":
    main()
