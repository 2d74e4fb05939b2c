"""The devices that JAX computes on."""

import os

import jax

from charjax.errors import UserError


def all_devices() -> list[jax.Device]:
    """Returns the devices of all processes, as `jax.devices`.

    Raises:
        UserError: the environment asks for a platform that this machine, or JAX as installed here, does not have, or
            for no CPU device.
    """
    try:
        return jax.devices()
    except (RuntimeError, AssertionError) as error:  # JAX has no class of its own for it
        names = [name for name in ("JAX_PLATFORMS", "JAX_NUM_CPU_DEVICES") if os.environ.get(name)]
        if not names:
            raise
        chosen = " ".join(f"{name}={os.environ[name]}" for name in names)
        raise UserError(f"{chosen}: JAX finds no such devices here; unset it to use the best available") from error
