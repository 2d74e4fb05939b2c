#!/bin/bash
# Everything to learn from one GPU in a quarter of an hour, in phases that each write their results at once:
#
#     benchmarks/gpu/first_contact.sh FOLDER [--tiny]
#
# FOLDER gets a file of results per phase. A phase that fails or hangs is ended, and the next one begins.
set -u
cd "$(dirname "$0")/../.." || exit 2
folder=${1:?usage: first_contact.sh FOLDER [--tiny]}
shift
python=${PYTHON:-python3}
failed=0

phase() { # name, seconds, stages and other options
    local name=$1 seconds=$2
    shift 2
    echo "== $name: $seconds s"
    timeout $((seconds + 60)) "$python" -m benchmarks.gpu --results "$folder" --seconds "$seconds" "$@" || {
        echo "== $name failed"
        failed=1
    }
}

if command -v nvidia-smi; then nvidia-smi; fi
phase "limits and correctness" 60 --without-torch --stages limits correctness sampling "$@"
phase "training steps and generation" 240 --stages train_step generation "$@"
phase "reasons" 180 --without-torch --stages profile variants "$@"
phase "a training" 90 --without-torch --stages training "$@"
exit "$failed"
