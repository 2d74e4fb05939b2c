"""Meshes of an H100 or of TPU chips to compile for on a machine that has none. Nothing runs on them."""

import os
from pathlib import Path

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh

# What XLA's GPU compiler needs to know: multiprocessors, memory and clocks, as NVIDIA states them for an H100 SXM.
H100 = Path(__file__).parent / "h100.txtpb"
TARGETS = ("h100", "v5e:2x2", "v6e:2x2")


def make_target_mesh(name: str) -> Mesh:
    """Returns a mesh over "data" of one H100, or of the chips of a TPU slice (such as "v5e:2x2").

    One kind of target per process: each needs its own JAX plug-in (`jax[cuda13]` or `jax[tpu]`).

    Raises:
        RuntimeError: the plug-in is not installed.
    """
    # A program compiled without a device cannot be read back from the cache.
    jax.config.update("jax_enable_compilation_cache", False)
    if name == "h100":
        os.environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"  # it would ask a driver that is not installed
        options = {"platform": "cuda", "topology": "1x1x1", "target_config": H100.read_text()}
    else:
        os.environ["TPU_SKIP_MDS_QUERY"] = "1"  # or it looks for a cloud machine
        options = {"platform": "tpu"}
    try:
        topology = topologies.get_topology_desc(topology_name=name, **options)
    except Exception as error:
        extra = "cuda13" if name == "h100" else "tpu"
        raise RuntimeError(f"JAX cannot compile for {name} here; install jax[{extra}] ({error})") from error
    return Mesh(np.array(topology.devices), ("data",), axis_types=(AxisType.Auto,))


def one_device(mesh: Mesh) -> Mesh:
    """Returns a mesh of only the first device."""
    return Mesh(mesh.devices.ravel()[:1], mesh.axis_names, axis_types=(AxisType.Auto,))


def placed(tree: object, sharding: jax.sharding.Sharding) -> object:
    """Returns the shapes and dtypes of a tree of arrays, with a sharding."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree)
