"""How the criterion comes to its scores: the tables in a run's ``explain/``.

Imports `pruning` and what lies below; knows no Ray. Start with `storage.explained`, which says what
each table holds; `units` puts together what is known of each unit.

From the shards: `extremes`. From the network's own passes: `activations`, `selectivity`, `where`,
`cards` with `thumbnail` and `kernels`, `negatives`, `class_removal`. From the game, played again by
`games`: `interactions`, `sizes`, `additivity`, `sampling`, with `evaluated`. From numbers alone:
`correlations`.
"""
