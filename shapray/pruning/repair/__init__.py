"""A cut network made to work again, with few images and mostly without labels.

Imports `network` and `engine` (the folded graph), and what lies below them. Each way takes the
network before the cut, the one after it and some images, and changes the latter in place.

`least_squares` refits, layer by layer and without gradients, what reads the channels that are left;
`batchnorm` takes the statistics of every BatchNorm anew; `distill` trains the cut network with the
whole one as its teacher, at best after one of the others.
"""
