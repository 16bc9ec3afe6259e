"""What goes together in a network, masked and cut.

Imports the errors and texts only, and is the one room that knows torch-pruning (`graph`). Start with
`group`, the words, then `find`, `consumers` (masking), `surgery` (cutting) and `check` (both agree).
"""
