"""A group on images as a fast game: the network's head run once an image, its tail once a coalition.

Imports `shapley`, `network` and the shards' columns. Start with `score.score_images`, then
`network_game` and `split`.
"""
