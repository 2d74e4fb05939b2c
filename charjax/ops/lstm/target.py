"""What a program is being compiled for."""

import re

import jax

HOPPER = re.compile(r"NVIDIA G?H\d+")


def target_platform() -> str:
    """One of cpu, gpu and tpu: the devices of the mesh around the call, which need not be here, else JAX's own."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device.platform if device else jax.default_backend()


def target_kind() -> str:
    """The model of the devices that are compiled for, as their makers call it."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device.device_kind if device else jax.devices()[0].device_kind


def target_is_hopper() -> bool:
    """Whether the devices that are compiled for are NVIDIA's of that generation, H100 and its kin."""
    return bool(HOPPER.search(target_kind()))
