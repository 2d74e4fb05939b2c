"""Compiles charjax for GPUs and TPUs on a machine that has neither, and reads the result.

    python -m benchmarks.compiled --target h100

Compiles the whole training step and the generation loop of every implementation for one H100 or for TPU chips, and
reads from the compiled programs the kernels launched per time step, collectives, temporary memory and, on TPU, the
cycles that the compiler expects, beside the estimates of a cost model. Nothing runs, and no figure is a speed.
"""

import dataclasses
import functools
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from benchmarks import cost_model, program, tpu_kernel
from benchmarks.common.options import make_parser
from benchmarks.common.problem import VOCAB
from benchmarks.common.report import markdown, show
from benchmarks.common.results import FOLDER, ResultsFile
from benchmarks.peers.jax_training import flax_model, make_optimizer, make_plain_step
from benchmarks.targets import TARGETS, make_target_mesh, one_device, placed
from charjax.config import SampleConfig
from charjax.data.batching import Streams
from charjax.generation.blocks import BLOCK
from charjax.generation.decoder import make_decoder
from charjax.generation.sampling import Sampling, make_settings
from charjax.model import CharLSTM, init_params
from charjax.train_state import abstract_train_state
from charjax.training.step import make_train_step

PORTABLE = ("wavefront", "recompute", "custom_vjp", "scan", "flax", "flax nn.RNN")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
    """Sizes of a program; the batch is per device."""

    hidden_dim: int = 512
    hidden_layers: int = 2
    batch_size: int = 64
    seq_len: int = 100
    dtype: str = "bfloat16"


def compile_train_step(sizes: Sizes, implementation: str | None, mesh: Mesh) -> Any:
    """Compiles charjax's training step for all devices of a mesh."""
    batch_size = sizes.batch_size * mesh.size
    model = _model(sizes, implementation)
    optimizer = make_optimizer()
    state = abstract_train_state(model, optimizer, batch_size=batch_size, mesh=mesh)
    split, whole = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
    streams = Streams(
        jax.ShapeDtypeStruct((batch_size, 8 * sizes.seq_len + 1), np.uint8, sharding=split),
        jax.ShapeDtypeStruct((batch_size,), np.int32, sharding=split),
        jax.ShapeDtypeStruct((batch_size,), np.int32, sharding=split),
        jax.ShapeDtypeStruct((), np.int32, sharding=whole),
        jax.ShapeDtypeStruct((), np.int32, sharding=whole),
    )
    step = make_train_step(model, optimizer, seq_len=sizes.seq_len, mesh=mesh)
    num_steps = jax.ShapeDtypeStruct((), np.int32, sharding=whole)
    return step.jitted.lower(state, streams, num_steps, step.hyperparameters).compile()


def compile_flax_step(sizes: Sizes, mesh: Mesh) -> Any:
    """Compiles the step of `flax.linen.RNN` of `OptimizedLSTMCell` for the first device of a mesh."""
    params, apply, carry = flax_model(dataclasses.asdict(sizes), sizes.dtype)
    # As in charjax, the cell state is float32.
    carry = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), carry)
    optimizer = make_optimizer()
    step = make_plain_step(apply, optimizer, sizes.dtype)
    window = np.zeros((sizes.batch_size, sizes.seq_len + 1), np.int32)
    arguments = (params, jax.eval_shape(optimizer.init, params), carry, window)
    where = NamedSharding(one_device(mesh), PartitionSpec())
    return jax.jit(step, donate_argnums=(0, 1, 2)).lower(*placed(arguments, where)).compile()


def compile_generation(sizes: Sizes, mesh: Mesh, implementation: str | None = None) -> Any:
    """Compiles the generation loop for the first device of a mesh: `batch_size` texts, 512 characters each."""
    model, alone = _model(sizes, implementation), one_device(mesh)
    where = NamedSharding(alone, PartitionSpec())

    def shapes(decoder: Any) -> tuple[Any, ...]:
        weights = decoder.pack(init_params(jax.random.key(0), model))
        keys = jax.random.split(jax.random.key(0), sizes.batch_size)
        sampling = Sampling(keys, jnp.int32(0), make_settings(SampleConfig(), sizes.batch_size))
        return weights, decoder.init(sizes.batch_size), sampling, jnp.int32(0)

    with jax.sharding.use_abstract_mesh(alone.abstract_mesh):
        decoder = make_decoder(model)
        args = placed(jax.eval_shape(functools.partial(shapes, decoder)), where)
        lowered = type(decoder).write.lower(decoder, *args, capacity=512, filtered=False)
    return lowered.compile()


def compile_peer(name: str, sizes: Sizes, mesh: Mesh) -> Any:
    """Compiles charjax's training step with one implementation ("default" for None), or that of flax's own RNN."""
    if name == "flax nn.RNN":
        return compile_flax_step(sizes, mesh)
    return compile_train_step(sizes, None if name == "default" else name, mesh)


def figures(compiled: Any, steps: int) -> dict[str, Any]:
    """Reads a program: a loop whose trips take `steps` time steps each, or those steps without a loop."""
    read = program.whole(compiled.as_text())
    # charjax takes many training steps per call: a loop of unknown length is around the loops over time.
    loop = read.inner[0] if len(read.inner) == 1 else read
    trip = loop.one_trip()
    return {
        "launches_per_time_step": trip.launches / steps,
        "estimated_cycles": trip.cycles or None,
        "temporary_bytes": compiled.memory_analysis().temp_size_in_bytes,
        "collectives": trip.collectives,
        "collectives_inside_loops": loop.collectives_inside(),
    }


def examine_training(name: str, target: str, sizes: Sizes, mesh: Mesh, folder: Path) -> dict[str, Any]:
    """Compiles and reads a training step, and asks the cost model; a refusal leaves its message instead."""
    chip = target.partition(":")[0]
    row: dict[str, Any] = {"program": f"training, {name}"}
    try:
        compiled = compile_peer(name, sizes, mesh)
    except NotImplementedError as error:
        return row | {"does_not_serve": str(error)}
    row |= figures(compiled, sizes.seq_len)
    names = tpu_kernel.kernel_names(compiled.as_text())
    if names:
        shape = dataclasses.asdict(sizes)
        del shape["hidden_layers"]
        row["kernels"] = tpu_kernel.kernel_cycles(names, tpu_kernel.listings(folder), chip=chip, **shape)
        row["estimated_cycles"] += sum(kernel["cycles"] for kernel in row["kernels"])
    seconds = cost_model.training_seconds(
        cost_model.DEVICES[chip],
        launches_per_time_step=row["launches_per_time_step"],
        cycles=row["estimated_cycles"],
        sizes=dataclasses.asdict(sizes),
        vocab_size=VOCAB,
    )
    chars = sizes.batch_size * sizes.seq_len
    return row | {"model_milliseconds": 1000 * seconds, "model_chars_per_second": chars / seconds}


def examine_generation(name: str, sizes: Sizes, mesh: Mesh) -> dict[str, Any]:
    """Compiles and reads a generation loop; launches and cycles are those per character."""
    row = figures(compile_generation(sizes, mesh, None if name == "default" else name), BLOCK)
    cycles = row["estimated_cycles"] and row["estimated_cycles"] / BLOCK
    by = "" if name == "default" else f" by {name}"
    return {"program": f"generation{by}, {sizes.batch_size} texts", **row, "estimated_cycles": cycles}


def examine(target: str, sizes: Sizes, peers: list[str], streams: list[int]) -> list[dict[str, Any]]:
    """Compiles and reads every program."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        tpu_kernel.leave_listings(Path(folder))
        mesh = make_target_mesh(target)
        for name in peers:
            print(f"compiling {name} ...", file=sys.stderr)
            rows.append(examine_training(name, target, sizes, mesh, Path(folder)))
    for batch_size in streams:
        for name in ("default", *(["mosaic_gpu"] if target == "h100" else [])):
            print(f"compiling generation of {batch_size} by {name} ...", file=sys.stderr)
            rows.append(examine_generation(name, dataclasses.replace(sizes, batch_size=batch_size), mesh))
    return rows


def _model(sizes: Sizes, implementation: str | None) -> CharLSTM:
    return CharLSTM(
        VOCAB,
        hidden_dim=sizes.hidden_dim,
        hidden_layers=sizes.hidden_layers,
        implementation=implementation,
        dtype=sizes.dtype,
    )


def table(rows: list[dict[str, Any]]) -> str:
    """Returns the figures in Markdown."""
    head = ["program", "launches/step", "est. Mcycles", "temp. MB", "collectives", "in loops", "model: ms", "chars/s"]
    return markdown(head, [_line(row) for row in rows])


def _line(row: dict[str, Any]) -> list[str]:
    if "does_not_serve" in row:
        return [row["program"], row["does_not_serve"], *("-" for _ in range(6))]
    cycles, speed = row["estimated_cycles"], row.get("model_chars_per_second")
    return [
        row["program"],
        f"{row['launches_per_time_step']:.1f}",
        show(cycles and cycles / 1e6, ".3g"),
        f"{row['temporary_bytes'] / 1e6:.0f}",
        str(row["collectives"]),
        str(row["collectives_inside_loops"]),
        show(row.get("model_milliseconds"), ".2f"),
        show(speed and speed / 1e6, ".2f") + (" M" if speed else ""),
    ]


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the benchmark."""
    parser = make_parser("compiled", __doc__)
    parser.add_argument("--target", choices=TARGETS, required=True)
    parser.add_argument("--peers", nargs="+", help="implementations, 'default' or 'flax nn.RNN'; all by default")
    parser.add_argument("--streams", nargs="+", type=int, default=[1, 64, 1024], help="texts generated at once")
    for field in dataclasses.fields(Sizes):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=type(field.default), default=field.default)
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder of the JSON")
    arguments = parser.parse_args(argv)
    sizes = Sizes(**{field.name: getattr(arguments, field.name) for field in dataclasses.fields(Sizes)})
    kernel = "mosaic_gpu" if arguments.target == "h100" else "mosaic_tpu"
    peers = arguments.peers or ["default", kernel, *PORTABLE]
    rows = examine(arguments.target, sizes, peers, arguments.streams)
    flops = cost_model.training_flops(sizes.hidden_dim, sizes.hidden_layers, VOCAB, sizes.batch_size * sizes.seq_len)
    moved = sum(cost_model.training_bytes(sizes.hidden_dim, sizes.hidden_layers, sizes.batch_size, sizes.seq_len))
    print(f"The compiler's figures for {arguments.target}; nothing ran\n\n{table(rows)}\n")
    print(
        f"A training step takes {flops / 1e9:.0f} GFLOP and, by the cost model, moves {moved / 1e9:.2f} GB per device. "
        "Cycles are per training step, in generation per character; times and characters per second are that model's "
        "estimates (benchmarks/cost_model.py), not measurements."
    )
    file = ResultsFile(
        arguments.out,
        f"compiled-{arguments.target.replace(':', '-')}",
        target=arguments.target,
        note="figures of the compiler and estimates of a cost model; nothing ran",
        sizes=dataclasses.asdict(sizes),
        training_flops=flops,
        training_bytes_by_cost_model=moved,
        programs=rows,
    )
    print("written:", file.save())


if __name__ == "__main__":
    main()
