"""What goes together in a network, masked and cut.

Imports the errors and texts only; `graph` alone knows torch-pruning. Start with `group`, the words,
then `find`, `consumers` (masking), `surgery` (cutting) and `check` (both agree).
"""
