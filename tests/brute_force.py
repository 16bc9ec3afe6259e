"""Shapley values by the definition, and games whose Shapley values are known.

Plain NumPy, without a line of the package: what the package computes is compared with this.
"""

import math
from collections.abc import Callable

import numpy as np

Toy = Callable[[np.ndarray], np.ndarray]  # (n_rows, n_players) bool -> (n_rows,) float64


def subsets(n_players: int) -> np.ndarray:
    """(2**n_players, n_players) bool; row i holds player j if bit j of i is set."""
    return np.array([[i >> j & 1 for j in range(n_players)] for i in range(2**n_players)], bool)


def shapley(values: np.ndarray) -> np.ndarray:
    """The sum over all subsets S without player i of |S|! (n-|S|-1)! / n! (v(S with i) - v(S)).

    Args:
        values: (2**n,), of every coalition, numbered as in `subsets`.
    """
    n = len(values).bit_length() - 1
    number = np.arange(2**n)
    size = np.array([int(i).bit_count() for i in number])
    weight = [math.factorial(s) * math.factorial(n - s - 1) / math.factorial(n) for s in range(n)]
    found = []
    for i in range(n):
        without = number[(number >> i & 1) == 0]
        gains = values[without + 2**i] - values[without]
        found.append(math.fsum(np.array(weight)[size[without]] * gains))
    return np.array(found)


def interactions(values: np.ndarray) -> np.ndarray:
    """(n, n): the sum over all subsets S without i and j of |S|! (n-|S|-2)! / (n-1)! times
    v(S with both) - v(S with i) - v(S with j) + v(S); 0 on the diagonal.

    Args:
        values: (2**n,), of every coalition, numbered as in `subsets`.
    """
    n = len(values).bit_length() - 1
    found = np.zeros((n, n))
    for i in range(n):
        for j in set(range(n)) - {i}:
            for s in range(2**n):
                if s >> i & 1 == s >> j & 1 == 0:
                    size = s.bit_count()
                    weight = math.factorial(size) * math.factorial(n - size - 2)
                    both = values[s + 2**i + 2**j] - values[s + 2**i] - values[s + 2**j] + values[s]
                    found[i, j] += weight / math.factorial(n - 1) * both
    return found


def marginals_by_size(values: np.ndarray) -> np.ndarray:
    """(n, n): row i, column s, the mean of v(S with i) - v(S) over all S of size s without i."""
    n = len(values).bit_length() - 1
    gains: list[list[list[float]]] = [[[] for _ in range(n)] for _ in range(n)]
    for i in range(n):
        for s in range(2**n):
            if s >> i & 1 == 0:
                gains[i][s.bit_count()].append(values[s + 2**i] - values[s])
    return np.array([[np.mean(of_size) for of_size in of_player] for of_player in gains])


def additive(weights: np.ndarray) -> tuple[Toy, np.ndarray]:
    """A coalition is worth the sum of its weights; so every player gets the own weight."""
    return lambda kept: kept @ weights, weights


def glove(n_right: int) -> tuple[Toy, np.ndarray]:
    """One left glove, player 0, and several right ones; a pair is worth 1.

    The left one is worth n / (n + 1): it gets nothing only if it comes first of all.
    """

    def value(kept: np.ndarray) -> np.ndarray:
        return (kept[:, 0] & kept[:, 1:].any(1)).astype(float)

    left = n_right / (n_right + 1)
    return value, np.array([left] + [(1 - left) / n_right] * n_right)


def airport(costs: np.ndarray) -> tuple[Toy, np.ndarray]:
    """A coalition pays for the longest runway that a member needs.

    Each stretch of the runway is shared by all who need it (Littlechild and Owen 1973). `costs`
    ascend.
    """
    stretches = np.diff(costs, prepend=0)
    shared_by = np.arange(len(costs), 0, -1)
    return lambda kept: (kept * costs).max(1, initial=0), np.cumsum(stretches / shared_by)


def random_game(n_players: int, seed: int) -> tuple[Toy, np.ndarray]:
    """Every coalition has a random value."""
    values = np.random.default_rng(seed).normal(size=2**n_players)
    bits = 2 ** np.arange(n_players)
    return lambda kept: values[kept @ bits], shapley(values)


TOYS = {
    "additive": additive(np.array([3.0, -1.5, 0.0, 0.25, 1e3, -7.0])),
    "glove": glove(4),
    "airport": airport(np.array([1.0, 2.0, 2.0, 5.0, 9.0, 30.0, 31.0])),
    "random": random_game(10, seed=5),
    "one player": (lambda kept: 2.0 + 3.0 * kept[:, 0], np.array([3.0])),
}
