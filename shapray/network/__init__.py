"""What goes together in a network, masked and cut.

Imports `errors` and `text` only; `graph` alone knows torch-pruning. Start with `group`, the words.

`probe` refuses networks that cannot be scored (no logits, random, coupled over the batch); `find`
makes the groups and gives the reason if the structure keeps one from being scored, `dataflow` says
which are flat; `consumers` masks them and finds null players; `surgery` cuts, `index_maps`
says which channels are left, `unreached` drops what only training calls and a cut breaks; `check`
compares masked and cut, and gives the reason if they differ.
"""
