"""A cut network made to work again, with few images and mostly without labels.

Imports `network` and `engine` (the folded graph), and what lies below them.

`least_squares` refits, layer by layer and without gradients, what lies behind a cut: at the `sites`
of a graph, by `regression`, while a `walk` keeps the values that are needed. `batchnorm` takes the
statistics of every BatchNorm anew; `distill` trains the cut network with the whole one as its
teacher, at best after one of the others. `curves` says what cutting a group alone costs.
"""
