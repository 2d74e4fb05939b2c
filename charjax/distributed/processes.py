"""Several processes that train together, on one machine or many: who is first, and what they tell each other.

All of them run the same program and take part in every computation on the mesh of all their devices. The first, "main",
alone reads and writes the run folder and tells of progress.
"""

import atexit
import contextlib
import json
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from charjax.errors import BROKEN_PIPE, USER_ERROR, Interrupted, UserError

_log = logging.getLogger("charjax")


def join_processes(
    coordinator: str | None = None, *, num_processes: int | None = None, process_id: int | None = None
) -> None:
    """Joins this process to the others; it must come before JAX is used for the first time.

    Args:
        coordinator: HOST:PORT of the first process. Without it Slurm, Open MPI, Kubernetes and TPU pods are recognised,
            by `jax.distributed`.
        num_processes: how many there are.
        process_id: which this is, from 0.

    Raises:
        UserError: no cluster is recognised, the coordinator has no such address, its port is taken here, or the others
            cannot be reached.
    """
    if coordinator is not None:
        _check_address(coordinator, is_first=process_id == 0)
        _log.info("waiting for %s processes to come together at %s", num_processes, coordinator)
    try:
        _in_thread(lambda: jax.distributed.initialize(coordinator, num_processes, process_id))
    except ValueError as error:
        raise UserError(
            f"no cluster was recognised ({error}); give --coordinator HOST:PORT, --num-processes and --process-id"
        ) from error
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"the processes do not come together ({reason})") from error


def _check_address(coordinator: str, *, is_first: bool) -> None:
    """Checks what JAX would wait for in silence, or end the process over."""
    host, _, port = coordinator.rpartition(":")
    try:
        socket.getaddrinfo(host.strip("[]"), int(port))
    except (OSError, OverflowError, UnicodeError) as error:
        raise UserError(f"coordinator {coordinator} is no address that is known here ({error})") from error
    if not 0 < int(port) < 2**16:
        raise UserError(f"coordinator {coordinator}: ports are from 1 to 65535")
    if is_first:
        with socket.socket() as listener:
            # As gRPC does: what a process before has just left may be taken.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind(("", int(port)))
            except OSError as error:
                raise UserError(f"port {port} cannot be taken here ({error.strerror}); choose another one") from error


def _in_thread(wait: Callable[[], None]) -> None:
    """Runs what may wait for long in C++, while signals are heard here; its errors come through."""
    done: Future[None] = Future()

    def run() -> None:
        try:
            wait()
            done.set_result(None)
        except BaseException as error:  # noqa: BLE001 -- raised where it is waited for
            done.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    while not done.done():
        with contextlib.suppress(TimeoutError):
            done.result(timeout=0.1)
    done.result()


@contextlib.contextmanager
def leaving_together() -> Iterator[None]:
    """Ends what `join_processes` began. The main process alone tells of what all know.

    What goes wrong in one process alone ends it at once: JAX would wait for the others at its exit, and they for it.

    Raises:
        UserError: the others are gone.
        SystemExit: in another process than the main one, what that one tells of.
    """
    try:
        yield
    except Interrupted as error:
        jax.distributed.shutdown()
        if jax.process_index() == 0:
            raise
        raise SystemExit(128 + error.signum) from error
    except (UserError, OSError) as error:
        if getattr(error, "agreed", False):
            jax.distributed.shutdown()
        else:
            _leave_at_exit(BROKEN_PIPE if isinstance(error, BrokenPipeError) else USER_ERROR)
        if isinstance(error, FailedElsewhereError):
            raise SystemExit(USER_ERROR) from error
        raise
    except (NotImplementedError, KeyboardInterrupt) as error:
        _leave_at_exit(USER_ERROR if isinstance(error, NotImplementedError) else 128 + signal.SIGINT)
        raise
    except jax.errors.JaxRuntimeError as error:
        _leave_at_exit(USER_ERROR)
        reason = str(error).splitlines()[0]
        if reason.startswith("RESOURCE_EXHAUSTED"):
            raise UserError(f"the device's memory is not enough ({reason})") from error
        raise UserError(
            f"the other processes cannot be reached any more ({reason}); start them all again, with --resume"
        ) from error
    except BaseException:
        _leave_at_exit(1)
        raise
    else:
        jax.distributed.shutdown()


def _leave_at_exit(code: int) -> None:
    """Ends the process without JAX's own end; what it registered earlier runs later, and so not at all."""

    def leave() -> None:
        for file in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):
                file.flush()
        os._exit(code)

    atexit.register(leave)


def are_several() -> bool:
    """Whether there are other processes; does not make JAX choose its devices."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def is_main() -> bool:
    """Whether this process is the first, or the only one."""
    return not are_several() or jax.process_index() == 0


def from_main(make: Callable[[], bytes]) -> bytes:
    """What the main process makes, in all of them.

    Raises:
        UserError: it could not be made. The main process raises what was raised in it.
    """
    if not are_several():
        return make()
    made = b""
    with together():
        if is_main():
            made = make()
    size = _numbers_of_all(len(made))[0]
    content = np.frombuffer(made, np.uint8) if is_main() else np.zeros(size, np.uint8)
    return np.asarray(multihost_utils.broadcast_one_to_all(content)).tobytes()


def check_same(settings: dict[str, Any]) -> None:
    """Checks that this process was started with the settings of the main one: else they would compute other things.

    Args:
        settings: values by name, that JSON can hold.

    Raises:
        UserError: they differ, here or in another process.
    """
    if not are_several():
        return
    first = json.loads(from_main(lambda: json.dumps(settings).encode()))
    with together():
        for name, value in json.loads(json.dumps(settings)).items():
            if first.get(name) != value:
                raise UserError(
                    f"process {jax.process_index()} was started with {name} {value}, process 0 with "
                    f"{first.get(name)}; give all the same options"
                )


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Does something in every process, and where it fails in one, fails in all: none waits for one that has gone.

    Raises:
        UserError: it failed in another process.
    """
    failure: Exception | None = None
    try:
        yield
    except (UserError, OSError) as error:
        failure = error
    if are_several():
        failed = _numbers_of_all(failure is not None)
        if failure is None and any(failed):
            raise FailedElsewhereError(failed.index(True))
    if failure is not None:
        failure.agreed = True  # type: ignore[attr-defined]
        raise failure


class FailedElsewhereError(UserError):
    """What another process failed with, which tells of it."""

    agreed = True

    def __init__(self, process: int) -> None:
        super().__init__(f"process {process} could not go on; its own message says why")


def least_of_all(number: int | None) -> int | None:
    """The smallest number that any process has; None stands for more than any."""
    if not are_several():
        return number
    most = np.iinfo(np.int64).max
    least = min(_numbers_of_all(most if number is None else number))
    return None if least == most else least


def _numbers_of_all(number: int) -> list[int]:
    """Each process's number; bytes, because JAX makes 32 bits of 64."""
    each = multihost_utils.process_allgather(np.frombuffer(np.int64(number).tobytes(), np.uint8))
    return np.ascontiguousarray(each).view(np.int64).ravel().tolist()


class Votes(NamedTuple):
    """What processes tell each other at each call to the step; the largest of each counts.

    Attributes:
        steps: steps that the next call should take: the main process says so.
        signum: the signal that this process received, 0 without one.
        failed: whether this process cannot go on.
    """

    steps: int
    signum: int
    failed: int


class Council:
    """Agrees on `Votes` without waiting for the steps under way.

    Votes are cast before a call is dispatched and read after the one before it was; the devices add them up between the
    two, so that the answer is there when it is asked for.
    """

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh
        self._cast: jax.Array | None = None
        whole = NamedSharding(mesh, PartitionSpec())
        self._largest = jax.jit(lambda votes: votes.max(axis=0), out_shardings=whole)

    def cast(self, votes: Votes) -> None:
        """Casts this process's votes; every process must."""
        if not are_several():
            return
        own = np.asarray([votes], np.int32)
        sharding = NamedSharding(self._mesh, PartitionSpec(self._mesh.axis_names[0]))

        def rows(index: Any) -> np.ndarray:
            start, stop, _ = index[0].indices(self._mesh.size)
            return np.repeat(own, stop - start, axis=0)

        shape = (self._mesh.size, len(votes))
        self._cast = self._largest(jax.make_array_from_callback(shape, sharding, rows))

    def read(self, votes: Votes) -> Votes:
        """What all agree on: the largest of the votes that were cast; a process by itself reads its own, as of now."""
        if self._cast is None:
            return votes
        return Votes(*np.asarray(self._cast).tolist())
