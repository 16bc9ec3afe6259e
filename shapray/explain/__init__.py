"""How the criterion comes to its scores: the tables of ``explain/``.

Imports `pruning` and what lies below; knows no Ray. The columns are in `storage.explained`.
"""
