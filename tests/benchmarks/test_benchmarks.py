"""The benchmark scripts, with tiny sizes: they run, agree with PyTorch where it is there, and write what they print."""

import importlib.util
import json
import subprocess
import sys

import pytest

from benchmarks import tpu_kernel
from benchmarks.train_step import LOSS_TOLERANCE, flops, losses_agree, ratio, summary

SIZES = {"hidden_dim": 128, "hidden_layers": 2, "batch_size": 10, "dtype": "float32"}
HAS_TORCH = importlib.util.find_spec("torch") is not None


def row(**seconds):
    peers = {peer: {"seconds": s, "median_seconds": sorted(s)[1]} for peer, s in seconds.items()}
    return {"sizes": SIZES, "peers": peers}


def test_flops_are_those_of_the_products():
    layer, head = 4 * 128 * 128, 128 * 128
    products = layer + 2 * layer + head  # layer 0 has its recurrent product alone
    assert flops(SIZES) == 3 * 2 * products * 10 * 100


def test_a_ratio_is_the_median_of_the_rounds_own():
    found = ratio(row(charjax=[1.0, 2.0, 4.0], torch=[2.0, 2.0, 12.0], slow=[9.0, 9.0, 9.0]), ["torch", "slow", "none"])
    assert found == (2.0, 1.0, 3.0)


def test_a_summary_is_a_geometric_mean():
    rows = [row(charjax=[1, 1, 1], torch=[2, 2, 2]), row(charjax=[1, 1, 1], torch=[8, 8, 8])]
    assert summary(rows)["torch / charjax, float32"] == {"geometric_mean": pytest.approx(4), "least": 2, "points": 2}


def test_losses_that_differ_stop_the_benchmark():
    peers = {"charjax": {"losses": [4.0, 3.0]}, "torch": {"losses": [4.0, 3.0 + 2 * LOSS_TOLERANCE["float32"]]}}
    with pytest.raises(SystemExit, match="differ"):
        losses_agree(peers, "float32")
    assert losses_agree({"charjax": {"losses": [4.0]}, "torch": {"cannot_run": "x"}}, "float32") is None


def test_the_training_step_rehearsed(tmp_path, root):
    peers = ["flax", "lax.scan", "torch"]
    sizes = ["--hidden-dim", "8", "--hidden-layers", "2", "--batch-size", "8", "--dtypes", "float32", "--rounds", "1"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.train_step", *sizes, "--peers", *peers, "--results", str(tmp_path)],
        cwd=root, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.glob("train_step-*.json")
    result = json.loads(path.read_text())
    assert {"date", "command", "machine", "peak_gflops", "summary", "rows"} <= result.keys()
    measured = result["rows"][0]["peers"]
    assert set(measured) == {"charjax", *peers}
    assert [peer for peer in measured if "cannot_run" in measured[peer]] == ([] if HAS_TORCH else ["torch"])
    assert (result["rows"][0]["losses_agree"] is not None) == HAS_TORCH
    assert "torch / charjax" in done.stdout


LISTING = """
     0   :  { %s1 = inlined_call_operand.hbm [shape: bf16[10,16,128], index: 0]
              ;;  %s2 = inlined_call_operand.vmem [shape: f32[9]] }
   0x1   :  { %s3 = smov 0 }
   0x2 LB: > { %s4 = sadd.s32 1, %s3 }
   0x3   : > { %s5 = sbr.rel }
   0x4   :  {}
   0x5 LB: >> { %v1 = vld [vmem:[%s1]] }
   0x6   : >> { %v2 = vmatmul.bf16.gmra.mxu0 %v1 }
   0x7   :  {}
   0x8 LB: >> { %v3 = vld [vmem:[%s1]] }
   0x9 PF: > { %s6 = sbr.rel }
   0xa   :  { %s7 = vsyncpa }
"""
PROGRAM = """
%body.1 (state: f32[]) -> f32[] {
  %add.1 = f32[] add(%a, %b), backend_config={"estimated_cycles":"30"}
  %lstm_forward.3 = (bf16[1]) custom-call(%add.1), custom_call_target="tpu_custom_call"
  %add.2 = f32[] add(%a, %b), backend_config={"estimated_cycles":"4"}
}

ENTRY %main.2 (state: f32[]) -> f32[] {
  %copy.1 = f32[] copy(%a), backend_config={"estimated_cycles":"500"}
}
"""


def test_bundles_are_counted_by_how_often_they_run():
    # The steps' loop; the grid's, with the bundle that waits and the loop that copies; the rest.
    assert tpu_kernel.read_listing(LISTING) == (3, 5, 3, 2 * 10 * 16 * 128)
    with pytest.raises(SystemExit, match="no loop over steps"):
        tpu_kernel.read_listing(LISTING.replace("vmatmul", "vadd"))


def test_a_kernel_costs_what_the_compiler_lists():
    names = tpu_kernel.kernel_names(PROGRAM)
    assert names == ["lstm_forward.3"]
    sizes = {"hidden_dim": 128, "batch_size": 8, "seq_len": 20, "dtype": "bfloat16"}
    (kernel,) = tpu_kernel.kernel_cycles(names, {"lstm_forward.9": LISTING}, chip="v5e", **sizes)
    assert kernel["cycles"] == 3 + 3 * 5 + 20 * 3  # three blocks of at most eight steps
