"""What is particular to the C++ kernel: its compiled forms, its threads, and machines without it."""

import platform
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers.lstm_contract import gradients, make_inputs

from charjax.ops.lstm import api, native
from charjax.ops.lstm.api import lstm


def test_every_form_is_compiled_where_a_compiler_is():
    names = native.INSTRUCTION_SETS if platform.machine() in ("x86_64", "AMD64") else ("generic",)
    folder = Path(native.__file__).parent
    missing = [name for name in names if not list(folder.glob(f"_{name}.*so"))]
    # setup.py lets a form fail to compile without failing itself.
    assert not missing or not shutil.which("c++"), missing


@pytest.mark.parametrize("one_hot", [False, True])
def test_threads_divide_the_rows(monkeypatch, one_hot):
    inputs = make_inputs("tiles", one_hot)
    outputs, _, single = gradients("native", "float32", *inputs)
    monkeypatch.setattr(native, "threads_of_a_call", lambda: 3)
    outputs_shared, _, shared = gradients("native", "float32", *inputs)
    # A row's numbers do not depend on the thread that computes it; sums over rows are added in another order.
    for one, other in zip(outputs_shared, outputs, strict=True):
        np.testing.assert_array_equal(one, other)
    for one, other in zip(shared, single, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


@pytest.fixture
def new_choice():
    """The default implementation is chosen again, here and in the tests after this one."""
    api._default_for_sequences.cache_clear()
    yield
    api._default_for_sequences.cache_clear()


@pytest.mark.usefixtures("new_choice")
def test_native_is_the_default_where_packing_pays():
    assert api.default_implementation("float32", 100) == "native"
    assert api.default_implementation("float32", 1) == "custom_vjp"


@pytest.mark.usefixtures("new_choice")
def test_a_machine_without_the_kernel_has_another_default(monkeypatch):
    monkeypatch.setattr(native, "libraries", lambda: ())
    assert api.default_implementation("float32", 100) == "custom_vjp"
    with pytest.raises(NotImplementedError, match="'native' is not available for bfloat16"):
        lstm(*make_inputs(), implementation="native", dtype="bfloat16")
