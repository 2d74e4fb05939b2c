"""Names in a run folder.

RUN/model.safetensors    the best parameters so far, float32   } these three files are a model,
    config.json          its configuration, and the run's      } in this or any other folder;
    vocab.json           its vocabulary                        } model_file.py writes and reads them
    metrics.jsonl        one line per evaluation               } logs.py
    samples.txt          one sample per evaluation             }
    tensorboard/         event files, with --tensorboard
    sweep.json           of a sweep, whose best model this is: what was measured of all
    sweep.svg            a picture of that
    checkpoints/STEP/    the whole training state, for --resume
    .lock                while a process trains in it (lock.py)

In STEP/, Orbax writes params/ (the parameters), training/ (the rest of the state), _CHECKPOINT_METADATA (with the
RunInfo and Progress) and markers of its own format; charjax_seal.json holds the digests of all these files and is
written last. Next to it, STEP.removed is being deleted, and STEP.set-aside is a later checkpoint that was damaged or
led to numbers that are not finite. checkpoint_store.py writes and removes checkpoints, with integrity.py for the
digests; checkpoint_header.py checks the digests and reads the metadata, and checkpoint.py reads the state.
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
