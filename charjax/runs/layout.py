"""Names of the files in a run folder.

RUN/model.safetensors    the best parameters so far, float32   } these three files make up a model,
    config.json          model and run configuration           } in this or any other folder;
    vocab.json           the model's vocabulary                } model_file.py writes and reads them
    metrics.jsonl        one line per evaluation               } logs.py
    samples.txt          one sample per evaluation             }
    tensorboard/         event files, with --tensorboard
    sweep.json           measurements of all models in a sweep, if this run is its best model
    sweep.svg            a plot of those measurements
    checkpoints/STEP/    the full training state, for --resume
    .lock                exists while a process trains in the folder (lock.py)

In STEP/, Orbax writes params/ (the parameters), training/ (the rest of the state), _CHECKPOINT_METADATA (with the
RunInfo and Progress) and its own marker files; charjax_seal.json contains the digests of all these files and is
written last. In checkpoints/, STEP.removed is a checkpoint that is being deleted, and STEP.set-aside is a later
checkpoint that was damaged or led to non-finite values. checkpoint_store.py writes and removes checkpoints, with
integrity.py for the digests; checkpoint_header.py checks the digests and reads the metadata, and checkpoint.py reads
the state.
"""

MODEL = "model.safetensors"
CONFIG = "config.json"
VOCAB = "vocab.json"
METRICS = "metrics.jsonl"
SAMPLES = "samples.txt"
SWEEP = "sweep.json"
PICTURE = "sweep.svg"
TENSORBOARD = "tensorboard"
CHECKPOINTS = "checkpoints"
LOCK = ".lock"
