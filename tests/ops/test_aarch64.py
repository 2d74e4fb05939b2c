"""The kernel's generic form on aarch64, under qemu: what Graviton and Apple's CPUs run.

aarch64/driver.cc makes the kernel's calls without jaxlib. Compiled for this machine, it takes the same tests: where
those fail, it is the driver's fault.
"""

import functools
import runpy
import shutil
import subprocess
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.kernel_steps import check_sampling, check_steps
from helpers.lstm_contract import SIZES, check, gradients, make_inputs

from charjax.array_types import LSTMCarry
from charjax.config import SampleConfig
from charjax.generation.native_decoder import NativeDecoder
from charjax.generation.sampling import make_settings
from charjax.model import CharLSTM, init_params
from charjax.ops.lstm import native
from charjax.ops.lstm.api import IMPLEMENTATIONS
from charjax.ops.lstm.native import generation
from charjax.ops.lstm.native.libraries import STEP_DTYPES, Library

pytestmark = pytest.mark.slow

COMPILERS = {"native": ["c++"], "aarch64": ["aarch64-linux-gnu-g++", "-static"]}
EMULATORS = {"native": [], "aarch64": ["qemu-aarch64"]}
DTYPES = {"int8": 2, "int32": 4, "uint32": 8, "float32": 11, "bfloat16": 16}  # XLA_FFI_DataType
INVALID_ARGUMENT = 3
THREADS = 4


class Kernel:
    """The kernel in a program of its own.

    Attributes:
        library: describes it.
        pool: see driver.cc.
    """

    def __init__(self, command, name):
        self.command, self.pool = command, "threads"
        supported, panel, bytes_at_once = map(int, self.run().stdout.split())
        assert supported
        self.library = Library(f"driver_{name}", panel, bytes_at_once, ("float32",))

    def run(self, *args, data=b""):
        return subprocess.run([*self.command, *args], input=data, capture_output=True, timeout=120, check=False)

    def call(self, handler, results, attributes, *args):
        """Makes a call with arrays: -> the process, whose output is the bytes of the results."""
        args = [np.asarray(arg) for arg in args]
        head = [len(args), len(args) + len(results)]
        for one in (*args, *results):
            head += [DTYPES[one.dtype.name], one.size * one.dtype.itemsize, one.ndim, *one.shape]
        data = np.array(head, np.int64).tobytes() + b"".join(arg.tobytes() for arg in args)
        return self.run(handler, self.pool, *(str(one) for item in attributes.items() for one in item), data=data)

    def results(self, handler, results, attributes, *args):
        """Makes a call with arrays: -> the results."""
        done = self.call(handler, results, attributes, *args)
        assert done.returncode == 0, done.stderr
        ends = np.cumsum([one.size * one.dtype.itemsize for one in results])
        parts = [done.stdout[start:end] for start, end in zip([0, *ends], ends, strict=False)]
        return [np.frombuffer(part, one.dtype).reshape(one.shape) for part, one in zip(parts, results, strict=True)]


def compile_driver(root, compiler, to):
    """Compiles the driver and the kernel as setup.py compiles the kernel."""
    setuptools, found = pytest.importorskip("setuptools"), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setuptools, "setup", lambda **options: found.extend(options["ext_modules"]))
        runpy.run_path(str(root / "setup.py"))
    (extension,) = [one for one in found if one.name.endswith("._generic")]
    options = [*extension.extra_compile_args, "-pthread", "-Wall", "-Wextra"]
    driver = Path(__file__).parent / "aarch64" / "driver.cc"
    command = [*compiler, *options, driver, *extension.sources, "-o", to]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.fixture(scope="module", params=COMPILERS)
def kernel(request, tmp_path_factory, pytestconfig):
    compiler, emulator = COMPILERS[request.param], EMULATORS[request.param]
    if not all(map(shutil.which, [compiler[0], *emulator])):
        pytest.skip("needs aarch64-linux-gnu-g++ and qemu-aarch64" if emulator else "no C++ compiler")
    program = tmp_path_factory.mktemp("driver") / "driver"
    compile_driver(pytestconfig.rootpath, compiler, program)
    return Kernel([*emulator, str(program)], request.param)


@pytest.fixture
def library(kernel, monkeypatch):
    """The program as a form of the kernel: JAX's calls of it are made by the driver, with several threads."""
    ffi_call, suffix = jax.ffi.ffi_call, f"_{kernel.library.instructions}"

    def call_of(target, results, **options):
        if not target.endswith(suffix):
            return ffi_call(target, results, **options)
        handler = target.removeprefix("charjax_lstm_").removesuffix(suffix)

        def call(*args, **attributes):
            run = functools.partial(kernel.results, handler, results, attributes)
            return jax.pure_callback(run, results, *args, **options)

        return call

    monkeypatch.setattr(jax.ffi, "ffi_call", call_of)
    monkeypatch.setattr(kernel, "pool", "threads")
    set_threads(monkeypatch, THREADS)
    implementation = functools.partial(native.lstm_native, library=kernel.library)
    monkeypatch.setitem(IMPLEMENTATIONS, "driver", implementation)
    return kernel.library


def set_threads(monkeypatch, threads):
    monkeypatch.setattr(native, "threads_of_a_call", lambda: threads)
    monkeypatch.setattr(generation, "available_cores", lambda: threads)


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("one_hot", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_outputs_and_gradients(size, one_hot):
    check("driver", "float32", make_inputs(size, one_hot))


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("one_hot", [False, True])
def test_no_sequences_and_no_steps(one_hot):
    weights, x, carry = make_inputs("odd", one_hot)
    *_, found = gradients("driver", "float32", weights, x[:0], LSTMCarry(carry.c[:0], carry.h[:0]))
    assert not any(np.any(leaf) for leaf in found)
    (_, *after), (_, *cotangents), found = gradients("driver", "float32", weights, x[:, :0], carry)
    assert_equal([*after, *found[-2:]], [*carry, *cotangents])
    assert not any(np.any(leaf) for leaf in found[:3])


@pytest.mark.parametrize("dtype", STEP_DTYPES)
@pytest.mark.parametrize(("batch", "hidden"), [(1, 40), (7, 33), (70, 16)])
def test_generation_takes_the_same_steps(library, batch, hidden, dtype):
    check_steps(library, dtype, batch, hidden)


def test_it_samples_as_xla_does(library):
    check_sampling(library)


def write(library, dtype, batch, hidden=20, time=8):
    """Reads three characters and samples the others, for the first of nine sequences: -> ids, c, h and logits."""
    model = CharLSTM(20, hidden_dim=hidden, hidden_layers=2)
    weights = NativeDecoder(model, dtype, library).pack(init_params(jax.random.key(0), model))
    rng = np.random.default_rng(0)
    carry = [LSTMCarry(*rng.standard_normal((2, 9, hidden)).astype(np.float32)[:, :batch]) for _ in range(2)]
    given = rng.integers(0, 20, (9, time)).astype(np.int32)
    given[:, 3:] = generation.SAMPLE
    keys, settings = jax.random.split(jax.random.key(0), 9), make_settings(SampleConfig(top_p=0.9), batch)
    options = {"vocab_size": 20, "with_logits": True}
    position = jnp.int32(5)
    found = generation.run_steps(
        library, dtype, weights, carry, given[:batch], keys[:batch], position, settings, **options
    )
    return jax.tree.leaves(found)


def assert_equal(found, expected):
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("dtype", STEP_DTYPES)
def test_a_sequence_is_the_same_in_any_batch(library, dtype):
    nine = write(library, dtype, 9)
    for batch in (1, 2, 3, 4, 5):
        assert_equal(write(library, dtype, batch), [array[:batch] for array in nine])


@pytest.mark.parametrize("pool", ["threads", "late", "none"])
def test_threads_share_the_work(kernel, library, monkeypatch, pool):
    kernel.pool = pool
    # Each piece of a step is worth a thread.
    run = functools.partial(write, library, "float32", 1, hidden=256, time=40)
    inputs = make_inputs("tiles")
    shared, (outputs_shared, _, sums_shared) = run(), gradients("driver", "float32", *inputs)
    set_threads(monkeypatch, 1)
    single, (outputs, _, sums) = run(), gradients("driver", "float32", *inputs)
    assert_equal(shared, single)
    assert_equal(outputs_shared, outputs)
    # Sums over rows are added in another order.
    for one, other in zip(sums_shared, sums, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def test_a_wrong_shape_is_refused(kernel):
    weights, x, carry = make_inputs()
    (batch, time, _), hidden = x.shape, carry.h.shape[1]
    shapes = [(batch, time, hidden), (batch, hidden), (batch, hidden), (time, batch, 0), (time, batch, 0)]
    results = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    call = functools.partial(kernel.call, "forward_float32", results, {"threads": 1})
    assert call(x, *weights, *carry).returncode == 0
    done = call(x, *weights, carry.c[:2], carry.h)
    assert (done.returncode, done.stderr) == (
        INVALID_ARGUMENT,
        b"charjax's LSTM kernel: c does not have shape [3, 6]\n",
    )
