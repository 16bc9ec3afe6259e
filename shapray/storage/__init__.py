"""A run's files: what each table holds, how it is published whole, and whose the directory is.

Imports `errors`, `credentials` (nothing secret is shown) and `text` (numbers in words). Start with
`schemas`, every table's columns, `criteria`, those that other criteria add to the scores, and
`explained`, those of the tables that explain them; a `column` says in words what it holds.

`names` says what files are called; `run_directory` publishes and reads them, with the patience of
`retry`; `shards` says where the per-image tables lie and which may be used; `aggregate` sums them
up, by `moments`, to scores and their errors, and `certainty` says how sure these are; `claim` holds
the directory for one driver.
"""
