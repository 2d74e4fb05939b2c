"""Shields charjax from JAX modes that a caller may have set, and from forks, which break JAX."""

import contextlib
import functools
import inspect
import os
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec, TypeVar

import jax

_Args = ParamSpec("_Args")
_Result = TypeVar("_Result")

_END = object()
_NO_GUARD = (None, "allow")
# jax.config options, with the values that count as the default, and a context manager that sets the default.
_MODES: dict[str, tuple[tuple[Any, ...], Callable[[], Any]]] = {
    "jax_enable_x64": ((False,), lambda: jax.enable_x64(False)),
    "jax_numpy_dtype_promotion": (("standard",), lambda: jax.numpy_dtype_promotion("standard")),
    "jax_default_prng_impl": (("threefry2x32",), lambda: jax.default_prng_impl("threefry2x32")),
    "jax_threefry_partitionable": ((True,), lambda: jax.threefry_partitionable(True)),
    # Out-of-range ids give NaN on purpose, and training checks for NaN itself.
    "jax_debug_nans": ((False,), lambda: jax.debug_nans(False)),
    "jax_debug_infs": ((False,), lambda: jax.debug_infs(False)),
    "jax_transfer_guard_host_to_device": (_NO_GUARD, lambda: jax.transfer_guard_host_to_device("allow")),
    "jax_transfer_guard_device_to_device": (_NO_GUARD, lambda: jax.transfer_guard_device_to_device("allow")),
    "jax_transfer_guard_device_to_host": (_NO_GUARD, lambda: jax.transfer_guard_device_to_host("allow")),
}


# ID of the process that last used JAX through charjax.
_user: int | None = None


@contextlib.contextmanager
def _default_modes() -> Iterator[None]:
    global _user  # noqa: PLW0603 -- per-process state
    if _user not in (None, os.getpid()):
        # The child has none of JAX's threads, and would wait for them forever.
        raise RuntimeError(
            "JAX cannot be used in a process that was forked after JAX was first used; "
            "use multiprocessing.get_context('spawn')"
        )
    with contextlib.ExitStack() as stack:
        for name, (defaults, context) in _MODES.items():
            if getattr(jax.config, name) not in defaults:
                stack.enter_context(context())
        yield
    _user = os.getpid()


def in_default_modes(function: Callable[_Args, _Result]) -> Callable[_Args, _Result]:
    """Decorates a function so that it runs in JAX's default modes, whatever its caller has set.

    With 64-bit types, strict promotion or another PRNG, the results would be different. Between the items of a
    generator, the caller's modes apply.

    In a process that was forked after JAX was used, the function raises a RuntimeError instead of hanging.
    """
    if not inspect.isgeneratorfunction(function):
        return _default_modes()(function)

    @functools.wraps(function)
    def items(*args: _Args.args, **kwargs: _Args.kwargs) -> Iterator[Any]:
        with contextlib.closing(function(*args, **kwargs)) as generator:
            step = _default_modes()(functools.partial(next, generator, _END))
            while (item := step()) is not _END:
                yield item

    return items  # type: ignore[return-value]
