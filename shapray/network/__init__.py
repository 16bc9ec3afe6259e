"""What goes together in a network, masked and cut.

Imports `errors` and `text` only. Start with `group`, the words.

`probe` refuses networks that cannot be scored (no logits, random, coupled over the batch).
`tracker` follows channels through a forward pass, from `layers` to layers: `labels` is what numbers
carry, `operations` the table of what PyTorch's operations do to them by which of the `rules`,
`coupling` what that means; `watching` is how every operation is seen. `find` reads the groups off,
with the reason if the structure keeps one from being scored; `cuttable` says whether the network
can be cut as it is or as a `program`, with its steps `moved`, `padded`, `reduced`,
`reshaped` and `along_channels`, of what `tracing` and `reductions` read.

`consumers` masks groups and finds null players, `statistics` are norms over what is kept; `surgery`
cuts, `index_maps` says which channels are left, `unreached` drops what only training calls and a
cut breaks, `silence` cuts in effect only; `check` compares masked and cut, `proof` shows that
nothing else sees a unit, and both give the reason if not.
"""
