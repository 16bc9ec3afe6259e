"""A group on images as a fast game: the head runs once an image, the tail once a coalition.

Imports `shapley`, `network` and the columns of a shard. Start with `score.score_images`, then
`network_game` and `split`.
"""
