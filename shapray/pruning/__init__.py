"""Scores to a smaller network: which units go, what is left, how good it is.

Imports `engine` (the traced network), `network`, `inputs`, `config`, `storage` and what lies below
them; knows no Ray. Start with `cuts`, all cuts that a job compares.

`feasible` says what cannot be, before anything is scored. `ranking` says which units go first, by
Shapley values or by one of the `criteria`; `allocate` how many go from each group, `sizes` how big
the rest is, `chooser` both with all that a job asks for; `cuts` which cuts are made, `rounds` how
they go on where an earlier one stopped; `ranked` is all that in one process. `compressed` cuts and
`repair` makes the rest work. `evaluate` says how good a network is, `latency` how fast; `curve`
puts what was measured into tables; `saved` writes and reads the compressed network, `export` makes
files of it for others.
"""
