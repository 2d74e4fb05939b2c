"""What a program is being compiled for."""

import jax


def target_platform() -> str:
    """One of cpu, gpu and tpu: the devices of the mesh around the call, which need not be here, else JAX's own."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device.platform if device else jax.default_backend()
