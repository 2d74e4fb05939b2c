"""A long run uses no more memory, files and threads at its end than near its beginning."""

import json
import os
import subprocess
import sys

import pytest
from conftest import ROOT
from helpers.compiler_flags import xla_flags

EARLY, LAST = 2_000, 10_000
EVERY = 100
# Allocators keep some free memory, and thread pools grow until all threads are busy at once (by nine when seen).
# Between the two counts are 80 evaluations, samples and saves: keeping a state of 700 kB at each would take 56 MB, and
# keeping a file or thread of each 80.
MOST_MEMORY, MOST_FILES, MOST_THREADS = 16 * 2**20, 8, 32

LONG_RUN = """
import gc, json, os, sys, time
from charjax import fit
from charjax.progress.reporter import NullReporter
from helpers.small_run import small_corpus, small_model

out, early, last, every = sys.argv[1], *map(int, sys.argv[2:])


def count(folder):
    return len(os.listdir(f"/proc/self/{folder}"))


def is_saved(out):
    names = os.listdir(f"{out}/checkpoints")
    return all(os.path.exists(f"{out}/checkpoints/{name}/charjax_seal.json") for name in names)


class Reporter(NullReporter):
    def evaluation(self, evaluation, sample_text=""):
        assert sample_text
        if evaluation.step not in (early, last):
            return
        files, threads = [], []
        # The last save may still be running, with files and threads of its own: count until it is complete.
        while not is_saved(out) or len(files) < 9:
            files.append(count("fd"))
            threads.append(count("task"))
            time.sleep(0.05)
        gc.collect()
        pages = int(open("/proc/self/statm").read().split()[1])
        memory = pages * os.sysconf("SC_PAGE_SIZE")
        print(json.dumps({"memory": memory, "files": min(files), "threads": min(threads)}), flush=True)


corpus = small_corpus()
# 47 steps an epoch
model = small_model(corpus, hidden_dim=64, hidden_layers=1)
often = {"eval_every": every, "checkpoint_every": every, "sample_length": 20}
state = fit(model, corpus, batch_size=8, seq_len=8, epochs=-(-last // 47), out=out, reporter=Reporter(), **often)
assert int(state.step) >= last
"""


@pytest.mark.slow
@pytest.mark.skipif(
    not os.path.exists("/proc/self/statm"), reason="the system does not say how much memory a process uses"
)
def test_ten_thousand_steps_take_no_more_than_two_thousand(tmp_path):
    arguments = [str(number) for number in (EARLY, LAST, EVERY)]
    environment = {
        **os.environ,
        "XLA_FLAGS": xla_flags(1),
        "PYTHONPATH": os.pathsep.join([str(ROOT / "tests"), str(ROOT)]),
    }
    done = subprocess.run(
        [sys.executable, "-c", LONG_RUN, str(tmp_path / "run"), *arguments],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    early, last = map(json.loads, done.stdout.splitlines())
    assert last["memory"] - early["memory"] < MOST_MEMORY, (early, last)
    assert last["files"] - early["files"] < MOST_FILES, (early, last)
    assert last["threads"] - early["threads"] < MOST_THREADS, (early, last)
