"""Scores to a smaller network: which units go, what is left, how good it is.

Imports `network`, `inputs`, `config`, `storage` and what lies below them; knows no Ray and no
Shapley value. Start with `cuts`, all cuts that a job compares.

`ranking` says which units go first; `evaluate` measures a network; `curve` puts what was measured
into tables; `saved` writes and reads the compressed network.
"""
