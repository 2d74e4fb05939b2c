"""How cycles are counted from the listings that the TPU compiler writes."""

import pytest

from benchmarks import tpu_kernel

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
