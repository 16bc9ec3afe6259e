"""How the criterion comes to its scores, as the tables of `storage.explained`.

Imports `pruning` and what lies below it. The parts that play the game again on some calibration
images start with `games`: `interactions` of pairs of units, marginal contributions by `sizes`,
`additivity` at both ends of the game, and `sampling`, what it does to the cut; `evaluated` gives
them coalitions' values. They take any game.
"""
