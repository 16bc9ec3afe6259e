"""Scores to a smaller network: which units go, what is left, how good it is.

Imports `engine` (the traced network), `network`, `inputs`, `config`, `storage` and what lies below
them; knows no Ray. Start with `cuts`, all cuts that a job compares.

`ranking` says which units go first; `criteria` has the scores that Shapley values are compared
with; `evaluate` measures a network; `curve` puts what was measured into tables; `saved` writes and
reads the compressed network.
"""
