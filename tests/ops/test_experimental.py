"""Experimental implementations exist under their names, refuse a CPU in one line, and cost nothing until then."""

import re
import subprocess
import sys

import pytest
from helpers.lstm_contract import make_inputs

from charjax.ops.lstm.api import EXPERIMENTAL, lstm


@pytest.mark.parametrize("name", EXPERIMENTAL)
def test_a_cpu_is_refused(name):
    dtype = "float32" if name == "cudnn" else "bfloat16"
    with pytest.raises(NotImplementedError) as refused:
        lstm(*make_inputs(), implementation=name, dtype=dtype)
    assert re.fullmatch(f"LSTM implementation '{name}' supports only .*'cpu'", str(refused.value))


def test_common_imports_are_free_of_pallas():
    modules = ("ops.lstm.api", "model", "generation.generate", "generation.session")
    imports = "; ".join(f"import charjax.{module}" for module in modules)
    heavy = ("jax.experimental.pallas", "jax.experimental.rnn")
    program = f"import sys; {imports}; print([name for name in sys.modules if name.startswith({heavy})])"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "[]\n"
