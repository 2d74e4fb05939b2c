"""Checksums: they follow the formula, see every flipped bit, and do not depend on where the arrays lie."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from charjax.checksum import checksums
from charjax.sharding import make_mesh, put_streams


def test_the_formula():
    array = np.random.default_rng(0).normal(size=(4, 3, 5)).astype(np.float32)
    bits = array.view(np.uint32).ravel().astype(object)
    expected = sum(int(bit) * (2 * place + 1) for place, bit in enumerate(bits)) % 2**32
    assert checksums({"a": array}) == {"['a']": expected}


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.int32, jnp.uint8])
def test_any_flipped_bit_changes_it(dtype):
    array = np.asarray(jnp.arange(12).astype(dtype)).reshape(3, 4)
    seen = {checksums({"a": array})["['a']"]}
    for place in range(array.nbytes):
        for bit in range(8):
            content = bytearray(array.tobytes())
            content[place] ^= 1 << bit
            seen.add(checksums({"a": np.frombuffer(content, array.dtype).reshape(3, 4)})["['a']"])
    original = checksums({"a": array})["['a']"]
    flipped = len(seen) - 1
    assert flipped > 0
    assert original not in {value for value in seen if value != original}
    assert len(seen) > array.nbytes  # one element's bits may stand for another's, but never for none


def test_scalars_keys_and_booleans_have_one():
    tree = {"key": jax.random.key(3), "step": jnp.int32(5), "flags": jnp.array([True, False])}
    assert checksums(tree)["['step']"] == 5
    assert checksums(tree) != checksums({**tree, "key": jax.random.key(4)})
    assert checksums(tree) != checksums({**tree, "flags": jnp.array([False, True])})


def test_sharding_does_not_matter():
    array = np.random.default_rng(0).normal(size=(16, 3)).astype(np.float32)
    assert checksums(put_streams({"a": array}, make_mesh())) == checksums({"a": array})
