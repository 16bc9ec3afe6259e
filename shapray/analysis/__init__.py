"""A finished run's tables for whoever asks them something: Arrow, pandas, Polars, SQL.

Imports `storage`, `text` and `errors` only. Start with `tables`: the public function, and what it
gives; `catalogue` says which tables there are and where each lies, `glossary` what their columns
hold. `comparison` holds two runs against each other.
"""
