"""Shapley values of any game: coalitions in, values and standard errors out.

Knows no network, no file and no Ray; imports nothing of the package. Start with
`estimators.estimate`: exact, sampled, or whichever is right for an image.

`game`: what the estimators take, and how outputs become values through `values`, the value
functions. `coalitions` draws permutations and pairs of coalitions, with their weights;
`permutations` and `pairs` evaluate them; `surrogate` corrects pairs by a fit of the outputs, with
`fits` and `ridge`; `pilot` chooses how many there are to be. `upload`: nothing waits for a GPU
before all coalitions are evaluated.
"""
