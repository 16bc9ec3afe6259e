"""A group on images as a fast game: the head runs once an image, the tail once a coalition.

Imports `shapley`, `network`, `errors` and `text`. Start with `score.score_images`.

`choose` asks which groups can be scored (`network.find` and `network.check` have most reasons why
one cannot); `trace` makes a torch.fx graph of the network, or says why it cannot; `split` cuts the
graph, which `measure` has seen run, in head and tail; `network_game` evaluates coalitions, by
`sums` of `contributions` to the `entries` of a tail where a group has these; `tail` runs a tail's
batches, by `fuse` with fewer kernels on a GPU; `arithmetic` says what float32 is there, and
`precision` chooses bfloat16, TensorFloat-32 or float32.
"""
