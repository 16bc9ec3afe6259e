"""Shapley values of convolution filters at cluster scale; the network without the useless ones.

Start with `score`; `load_pruned` reads what a job left.
"""

from importlib.metadata import version

from shapray.api import Quality, Scores, evaluate, plan, prune, score
from shapray.pruning.saved import load_pruned

__all__ = ["Quality", "Scores", "evaluate", "load_pruned", "plan", "prune", "score"]
__version__ = version("shapray")
