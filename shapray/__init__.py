"""Shapley values of convolution filters at cluster scale; the network without the useless ones."""

from shapray.pruning.saved import load_pruned

__all__ = ["load_pruned"]
