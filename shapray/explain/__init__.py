"""How the criterion comes to its scores: the tables of ``explain/``.

Imports `pruning` and what lies below; knows no Ray. The columns are in `storage.explained`.

From the shards of a group, image by image: `extremes`. From passes of the network over images
(`pruning.criteria.inputs.Inputs`): `activations`, `negatives`, `class_removal`, and `cards`, with a
`thumbnail` of every image on them and `where` in it a unit acts. From the weights: `kernels`.
`selectivity` is an index of arrays.
"""
