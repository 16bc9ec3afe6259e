"""The job file: what it may say, read and checked.

Imports `bounds`, `errors` and, for names, `shapley`. Start with `sections.Job`; `prune` is the
longest section, `load` reads a file and says what is wrong with it.
"""

from shapray.config.load import explain, load_job
from shapray.config.prune import Distill, Prune
from shapray.config.sections import Cluster, Data, Explain, Images, Job, Model, Score, Transform

__all__ = [
    "Cluster",
    "Data",
    "Distill",
    "Explain",
    "Images",
    "Job",
    "Model",
    "Prune",
    "Score",
    "Transform",
    "explain",
    "load_job",
]
