"""Lists the devices that JAX computes on."""

import os

import jax

from charjax.errors import UserError


def all_devices() -> list[jax.Device]:
    """Returns the devices of all processes, as `jax.devices` does.

    Raises:
        UserError: the environment requests zero CPU devices, or a platform that this machine or the installed JAX does
            not have.
    """
    try:
        return jax.devices()
    except (RuntimeError, AssertionError) as error:  # JAX has no specific exception class for this
        names = [name for name in ("JAX_PLATFORMS", "JAX_NUM_CPU_DEVICES") if os.environ.get(name)]
        if not names:
            raise
        chosen = " ".join(f"{name}={os.environ[name]}" for name in names)
        raise UserError(f"{chosen}: JAX found no such devices here; unset it to use the best ones available") from error
