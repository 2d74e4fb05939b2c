"""Coordinates multiple processes that train together, on one or more machines.

All of them run the same program and take part in every computation on the mesh of all their devices. Only the main
process, process 0, reads and writes the run folder and reports progress.
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

from charjax.errors import BROKEN_PIPE, USER_ERROR, Interrupted, UserError, check_type, checked_whole

_log = logging.getLogger("charjax")


def join_processes(
    coordinator: str | None = None, *, num_processes: int | None = None, process_id: int | None = None
) -> None:
    """Connects this process to the others that train with it; must be called before JAX is first used.

    Args:
        coordinator: HOST:PORT of process 0. Without it, `jax.distributed` detects Slurm, Open MPI, Kubernetes and TPU
            pods.
        num_processes: number of processes.
        process_id: zero-based index of this process.

    Raises:
        UserError: no cluster is detected, the address is not valid, its port is in use on this machine, or the other
            processes cannot be reached.

    Examples:
        >>> from charjax import join_processes
        >>> join_processes("127.0.0.1:99999", num_processes=2, process_id=1)
        Traceback (most recent call last):
        charjax.errors.UserError: coordinator 127.0.0.1:99999: the port must be from 1 to 65535
    """
    for name, value, least in (("num_processes", num_processes, 1), ("process_id", process_id, 0)):
        if value is not None:
            checked_whole(name, value, least)
    if coordinator is not None:
        check_type("coordinator", coordinator, str, "pass HOST:PORT")
        _check_address(coordinator, is_first=process_id == 0)
        _log.info("waiting for %s processes to connect at %s", num_processes, coordinator)
    try:
        _in_thread(lambda: jax.distributed.initialize(coordinator, num_processes, process_id))
    except ValueError as error:
        raise UserError(
            f"no cluster was detected ({error}); pass --coordinator HOST:PORT, --num-processes and --process-id"
        ) from error
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"the processes could not connect ({reason}); check that all of them are running") from error


def _check_address(coordinator: str, *, is_first: bool) -> None:
    """Checks an address, because JAX would silently wait for a wrong one or end the process."""
    host, _, port = coordinator.rpartition(":")
    try:
        socket.getaddrinfo(host.strip("[]"), int(port))
    except (OSError, OverflowError, ValueError) as error:
        raise UserError(f"coordinator {coordinator} cannot be resolved ({error}); pass HOST:PORT") from error
    if not 0 < int(port) < 2**16:
        raise UserError(f"coordinator {coordinator}: the port must be from 1 to 65535")
    if is_first:
        with socket.socket() as listener:
            # As in gRPC, so that a port just released by another process can be reused.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind(("", int(port)))
            except OSError as error:
                raise UserError(f"port {port} is not available ({error.strerror}); choose a different one") from error


def _in_thread(wait: Callable[[], None]) -> None:
    """Runs a call that may block in C++ in a separate thread, so that signals are handled; its errors are re-raised."""
    done: Future[None] = Future()

    def run() -> None:
        try:
            wait()
            done.set_result(None)
        except BaseException as error:  # noqa: BLE001 -- re-raised by `result`
            done.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    while not done.done():
        with contextlib.suppress(TimeoutError):
            done.result(timeout=0.1)
    done.result()


@contextlib.contextmanager
def leaving_together() -> Iterator[None]:
    """Disconnects the processes at the end of a block; only the main one reports an error that all of them raise.

    An error in only one process ends that process immediately; on a normal exit, JAX would wait for the others, which
    would in turn wait for it.

    Raises:
        UserError: the connection to the other processes was lost.
        SystemExit: the main process reports the error instead of this one.
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
            raise UserError(f"out of device memory ({reason}); lower --batch-size or --hidden-dim") from error
        raise UserError(
            f"lost contact with the other processes ({reason}); restart all of them with --resume"
        ) from error
    except BaseException:
        _leave_at_exit(1)
        raise
    else:
        jax.distributed.shutdown()


def _leave_at_exit(code: int) -> None:
    """Makes the process exit before JAX's exit handlers, which run later because they were registered earlier."""

    def leave() -> None:
        for file in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):
                file.flush()
        os._exit(code)

    atexit.register(leave)


def are_several() -> bool:
    """Returns True if there are other processes, without making JAX initialize its devices."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def is_main() -> bool:
    """Returns True in process 0, or if there is only one process."""
    return not are_several() or jax.process_index() == 0


def from_main(make: Callable[[], Any]) -> Any:
    """Calls `make` only in the main process and returns its JSON-serializable result in every process.

    Raises:
        UserError: `make` failed in the main process, where the original error is raised.
    """
    if not are_several():
        return make()
    made = b""
    with together():
        if is_main():
            made = json.dumps(make()).encode()
    size = _numbers_of_all(len(made))[0]
    content = np.frombuffer(made, np.uint8) if is_main() else np.zeros(size, np.uint8)
    return json.loads(np.asarray(multihost_utils.broadcast_one_to_all(content)).tobytes())


def check_same(settings: dict[str, Any]) -> None:
    """Checks that all processes were started with the same settings.

    Args:
        settings: JSON-serializable values by name.

    Raises:
        UserError: the settings of a process differ from those of the main process.
    """
    if not are_several():
        return
    first = from_main(lambda: settings)
    with together():
        for name, value in json.loads(json.dumps(settings)).items():
            if first.get(name) != value:
                raise UserError(
                    f"process {jax.process_index()} was started with {name} {value}, but process 0 with "
                    f"{first.get(name)}; start all of them with the same options"
                )


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Runs a block in every process; if it fails in one, raises an error in all, so that no process waits for another.

    Raises:
        UserError: the block failed in another process.
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
    """Raised when another process has failed and reports the error."""

    agreed = True

    def __init__(self, process: int) -> None:
        super().__init__(f"process {process} failed; see its error message")


def least_of_all(number: int | None) -> int | None:
    """Returns the smallest number across all processes; None counts as infinite."""
    if not are_several():
        return number
    most = np.iinfo(np.int64).max
    least = min(_numbers_of_all(most if number is None else number))
    return None if least == most else least


def _numbers_of_all(number: int) -> list[int]:
    """Returns the number of each process, sent as bytes because JAX would truncate 64 bits to 32."""
    each = multihost_utils.process_allgather(np.frombuffer(np.int64(number).tobytes(), np.uint8))
    return np.ascontiguousarray(each).view(np.int64).ravel().tolist()


class Votes(NamedTuple):
    """Values that processes share before each call to the training step; the largest value of each field counts.

    Attributes:
        steps: number of steps for the next call; 0 except in the main process.
        signum: number of the signal that this process received, or 0.
        failed: 1 if this process has failed, otherwise 0.
    """

    steps: int
    signum: int
    failed: int


class Council:
    """Lets processes agree on `Votes` without waiting for running steps.

    Votes are cast before a call is dispatched and read one call later, so that the devices have combined them by the
    time they are needed.
    """

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh
        self._cast: jax.Array | None = None
        whole = NamedSharding(mesh, PartitionSpec())
        self._largest = jax.jit(lambda votes: votes.max(axis=0), out_shardings=whole)

    def cast(self, votes: Votes) -> None:
        """Casts the votes of this process; all processes must call it."""
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
        """Returns the largest of the votes cast by all processes; a single process gets its current `votes` back."""
        if self._cast is None:
            return votes
        return Votes(*np.asarray(self._cast).tolist())
