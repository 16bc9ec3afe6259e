"""Shapley values of convolution filters at cluster scale; the network without the useless ones.

Start with `compress`, or with `score` for its parts; `load_pruned` reads the
network that a job left, `tables` its tables.
"""

from importlib.metadata import version

from shapray.analysis.comparison import compare
from shapray.analysis.tables import Tables, tables
from shapray.api import Scores, score
from shapray.compression import compress, plan, prune, repair
from shapray.pruning.saved import load_pruned
from shapray.quality import Quality, evaluate

__all__ = [
    "Quality",
    "Scores",
    "Tables",
    "compare",
    "compress",
    "evaluate",
    "load_pruned",
    "plan",
    "prune",
    "repair",
    "score",
    "tables",
]
__version__ = version("shapray")
