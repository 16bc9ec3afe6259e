"""A cut network made to work again, without labels and without gradients.

Imports `network` and `engine` (the folded graph). Start with `least_squares`.
"""
