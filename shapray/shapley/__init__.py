"""Shapley values of any game: coalitions in, values and standard errors out.

Knows no network, no file and no Ray; imports nothing of the package. Start with
`estimators.estimate`, then `game`, what it takes.
"""
