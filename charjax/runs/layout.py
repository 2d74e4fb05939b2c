"""Names in a run folder.

RUN/model.safetensors    the best parameters so far, float32   } these three files are a model,
    config.json          its configuration, and the run's      } in this or any other folder
    vocab.json           its vocabulary                        }
    metrics.jsonl        one line per evaluation
    samples.txt          one sample per evaluation
    checkpoints/STEP/    the whole training state, for --resume
    .lock                while a process trains in it
"""

MODEL = "model.safetensors"
CONFIG = "config.json"
VOCAB = "vocab.json"
METRICS = "metrics.jsonl"
SAMPLES = "samples.txt"
CHECKPOINTS = "checkpoints"
LOCK = ".lock"
