"""How the criterion comes to its scores: the tables in a run's ``explain/``.

Imports `pruning` and what lies below. Start with `storage.explained`, which says what each table
holds; a file here fills each of them, from the scores, from the shards, by playing the game again
on some images, or from the network's own passes.
"""
