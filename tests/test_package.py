"""The package: importing it costs nothing, and its names are what they say in whatever order they are imported."""

import itertools
import subprocess
import sys

import pytest

import charjax


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_importing_it_imports_nothing_heavy():
    loaded = run("import sys, charjax; print(sorted({name.split('.')[0] for name in sys.modules}))")
    assert not {"jax", "flax", "numpy", "optax", "orbax", "rich", "tyro"} & set(eval(loaded))


def test_every_public_name_is_there():
    for name in charjax.__all__:
        value = getattr(charjax, name)
        assert value.__doc__, name
    assert set(charjax.__all__) <= set(dir(charjax))


@pytest.mark.parametrize(("first", "second"), list(itertools.permutations(["fit", "generate", "evaluate"], 2)))
def test_functions_stay_in_front_of_the_modules_of_their_name(first, second):
    code = f"import charjax.{first}; from charjax import {first}, {second}; import charjax.{second} as again"
    assert run(f"{code}; print(callable({first}), callable({second}), again is {second})") == "True True True"


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'charjax' has no attribute 'train_all'"):
        charjax.train_all  # noqa: B018
