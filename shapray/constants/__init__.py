"""A network of plain layers: weights that are computed anew at every pass, though evaluation never
changes them, are put in place as the constants that they are.

Imports `text`. Start with `place.put_in_place`.

`wrappers` takes off what lies around a network; `reparametrised` ends parametrizations;
`frozen_norm` and `convolutions` find layers that only look unlike PyTorch's own, and prove it by
running both.
"""
