"""Coalitions: seeds, permutations, pairs, prefixes, subsets and their Shapley weights."""

import functools
import hashlib

import numpy as np
import torch
from torch import Tensor

DRAWN_NUMBERS = 2**20  # random ones at once


def image_seed(seed: int, group: str, image_id: str) -> int:
    """Seed of one image's random stream in one group.

    It depends on nothing else, so neither the number of workers nor the place of a task shows in
    the scores.

    Returns:
        an integer of 128 bits.
    """
    return int.from_bytes(hashlib.sha256(f"{seed}\0{group}\0{image_id}".encode()).digest()[:16])


def antithetic_permutations(n_players: int, n_permutations: int, seed: int) -> np.ndarray:
    """Independent uniform permutations, each followed by its reverse.

    A longer draw with the same seed begins with the shorter one.

    Args:
        n_players: length of a permutation.
        n_permutations: how many; even, as they come in pairs.
        seed: of the stream (see `image_seed`).
    Returns:
        (n_permutations, n_players) int64; row 2i+1 is row 2i backwards.
    Source: Mitchell et al. 2022, "Sampling Permutations for Shapley Value Estimation", section 4.2.
    """
    assert n_permutations % 2 == 0
    forward = orders(n_players, n_permutations // 2, seed)
    return np.stack([forward, forward[:, ::-1]], axis=1).reshape(n_permutations, n_players)


def size_weights(n_players: int) -> np.ndarray:
    """Probability of each coalition size 1 .. n_players - 1 among `paired_coalitions`.

    Proportional to 1 / sqrt(s (n - s)): with it every coalition's share in a Shapley value has the
    same length (see `surrogate`).

    Returns:
        (n_players - 1,) float64.
    """
    size = np.arange(1, n_players)
    weights = 1 / np.sqrt(size * (n_players - size))
    return weights / weights.sum()


def mean_weights(n_players: int) -> np.ndarray:
    """What a number times the deviations of the players weighs, as a mean over the coalitions of
    each size 1 .. n_players - 1 (see `surrogate`)."""
    size = np.arange(1, n_players)
    return n_players / (size * (n_players - size))


def paired_coalitions(n_players: int, n_pairs: int, seed: int) -> np.ndarray:
    """Independent coalitions, each to be taken with its complement; all of a size alike.

    Sizes follow `size_weights`. A longer draw with the same seed begins with the shorter one.

    Args:
        n_players: at least 2.
        n_pairs: how many.
        seed: of the stream (see `image_seed`).
    Returns:
        (n_pairs, n_players) bool; no coalition is empty or full.
    """
    random = np.random.Generator(np.random.Philox(key=seed))
    up_to = size_weights(n_players).cumsum()
    members = np.zeros((n_pairs, n_players), bool)
    rows = max(1, DRAWN_NUMBERS // n_players)
    for start in range(0, n_pairs, rows):
        part = members[start : start + rows]
        drawn = random.random((len(part), 1 + n_players))  # a pair's own numbers, one after another
        size = 1 + np.minimum(up_to.searchsorted(drawn[:, :1], side="right"), n_players - 2)
        part[:] = drawn[:, 1:].argsort(axis=1) < size
    return members


def stratified_coalitions(n_players: int, n: int) -> np.ndarray:
    """Coalitions whose sizes are as frequent as `size_weights` says, and at least one of each size
    if there are 2 (n_players - 1); always the same, to be taken with other names of the players.

    Returns:
        (n, n_players) bool; sizes ascend.
    """
    return np.unpackbits(_stratified(n_players, n), axis=1, count=n_players).view(bool)


@functools.lru_cache(maxsize=32)
def _stratified(n_players: int, n: int) -> np.ndarray:
    up_to = size_weights(n_players).cumsum()
    size = 1 + np.minimum(up_to.searchsorted((np.arange(n) + 0.5) / n), n_players - 2)
    return np.packbits(orders(n_players, n, seed=0) < size[:, None], axis=1)


def orders(n_players: int, n: int, seed: int) -> np.ndarray:
    """Independent uniform permutations, (n, n_players) int64."""
    random = np.random.Generator(np.random.Philox(key=seed))
    return random.random((n, n_players)).argsort(axis=1)


def prefix_coalitions(orders: Tensor, n_players: int) -> Tensor:
    """The coalitions met while players join one after the other.

    Args:
        orders: (n_chains, length) int64, the player that joins at each step; -1 where none does.
        n_players: columns of the result.
    Returns:
        (n_chains, length + 1, n_players) bool, the empty coalition first.
    """
    n_chains, length = orders.shape
    joins = torch.zeros(n_chains, length + 1, n_players + 1, dtype=torch.bool)
    # the extra last column takes the -1 entries
    joins[:, 1:].scatter_(2, orders.where(orders >= 0, n_players)[:, :, None], True)
    return joins[:, :, :n_players].cumsum(1) > 0


def all_subsets(n_players: int, start: int = 0, stop: int | None = None) -> Tensor:
    """Coalitions `start` to `stop` of all: (n, n_players) bool; row i holds player j if bit j of
    start + i is set."""
    numbers = torch.arange(start, 2**n_players if stop is None else min(stop, 2**n_players))
    return (numbers[:, None] >> torch.arange(n_players)) & 1 > 0


def shapley_weights(n_players: int) -> Tensor:
    """Weight of a marginal contribution to a coalition of each size, |S|! (n - |S| - 1)! / n!.

    Computed in log space, as the factorials overflow.

    Returns:
        (n_players,) float64, by the size of the coalition that is joined.
    Source: Shapley 1953.
    """
    size = torch.arange(n_players, dtype=torch.float64)
    log_weight = (size + 1).lgamma() + (n_players - size).lgamma()
    return (log_weight - torch.tensor(n_players + 1.0, dtype=torch.float64).lgamma()).exp()


@functools.lru_cache(maxsize=32)
def _codes(n_players: int) -> np.ndarray:
    """A coalition's key is the wrapping sum of its members' random 64-bit codes (Zobrist 1970)."""
    random = np.random.Generator(np.random.Philox(key=0))
    return random.integers(0, 2**64, size=n_players, dtype=np.uint64)


def repeated(orders: np.ndarray, images: np.ndarray) -> np.ndarray:
    """Finds the prefixes whose coalition an earlier prefix of the same image has met already.

    Args:
        orders: (n_chains, longest) int64, -1 after a chain's end.
        images: (n_chains,) int64, the image each chain belongs to.
    Returns:
        (n_chains, longest + 1) int64, flat position of the first prefix with the same coalition:
        its own where the coalition is new.
    """
    codes = np.append(_codes(int(orders.max(initial=0)) + 1), np.uint64(0))  # that of -1
    keys = np.zeros((len(orders), orders.shape[1] + 1), np.uint64)
    np.cumsum(codes[orders], axis=1, out=keys[:, 1:])
    keys += (images.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15))[:, None]
    _, first, inverse = np.unique(keys.ravel(), return_index=True, return_inverse=True)
    return first[inverse].reshape(keys.shape)


def distinct(members: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Finds equal ones among coalitions and their complements.

    Args:
        members: (n_pairs, n_players) bool.
    Returns:
        (n_distinct,) int64 ascending, first occurrences, where 2 i is coalition i and 2 i + 1 its
        complement; and (n_pairs, 2) int64, the place of each of both among the first occurrences.
    """
    codes = _codes(members.shape[1])
    keys = (members * codes).sum(1)
    both = np.stack([keys, codes.sum() - keys], axis=1)
    _, first, inverse = np.unique(both.ravel(), return_index=True, return_inverse=True)
    order = first.argsort()
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    return first[order], place[inverse].reshape(len(members), 2)
