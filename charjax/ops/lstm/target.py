"""The target devices that a program is being compiled for."""

import re

import jax

from charjax.devices import all_devices

HOPPER = re.compile(r"NVIDIA G?H\d+")


def target_platform() -> str:
    """Returns "cpu", "gpu" or "tpu": the platform of the current mesh (possibly abstract), otherwise JAX's default."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device.platform if device else all_devices()[0].platform


def target_kind() -> str:
    """Returns the vendor's name for the target device model, e.g. "NVIDIA H100 80GB HBM3"."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device.device_kind if device else all_devices()[0].device_kind


def target_is_hopper() -> bool:
    """Returns whether the program is being compiled for NVIDIA's Hopper generation (H100, H200, GH200)."""
    return bool(HOPPER.search(target_kind()))
