"""Scores to a smaller network: which units go, what is left, how good it is.

Imports `network`, `inputs`, `config` and `storage`; knows no Ray and no Shapley value. Start with
`cuts`, then `ranking` and `evaluate`.
"""
