"""The devices that JAX computes on."""

import os

import jax

from charjax.errors import UserError


def all_devices() -> list[jax.Device]:
    """Returns the devices of all processes, as `jax.devices`.

    Raises:
        UserError: JAX_PLATFORMS asks for a platform that this machine, or JAX as installed here, does not have.
    """
    try:
        return jax.devices()
    except (RuntimeError, AssertionError) as error:  # JAX has no class of its own for it
        chosen = os.environ.get("JAX_PLATFORMS")
        if not chosen:
            raise
        raise UserError(
            f"JAX_PLATFORMS={chosen}: JAX finds no such devices here; unset it to use the best available"
        ) from error
