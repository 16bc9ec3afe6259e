"""Why noisy values can cut better: to values by many permutations noise of several kinds is added.

    python -m jobs.experiments.hybrid_vs_sampling.noise     # a minute or two

The noise of a unit on an image is what two samplings by few permutations differ by, over the root
of two. Added is a unit's own, of other images; that of other units of the image; or normal noise of
one size for all units of a layer. Accuracy is of the VGG cut to half of its multiply-adds by the
mean of absolutes, not repaired.
"""

import numpy as np

from jobs.experiments.hybrid_vs_sampling.cuts import Cutter
from jobs.experiments.hybrid_vs_sampling.networks import Trained, load, one_thread
from jobs.experiments.hybrid_vs_sampling.values import GroupOnImages

NETWORK, N_IMAGES, SEEDS = "digits_vgg", 250, (0, 1, 2)
MANY, FEW = 32, (2, 8)  # permutations
OTHER = 100  # what the seed of the second sampling is further on

Phi = dict[str, np.ndarray]  # group -> (n_images, n_units)


def main() -> None:
    one_thread()
    trained = load(NETWORK)
    print(
        "| seed | permutations of the noise | few | many | + own | + other units' | + of one size |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for seed in SEEDS:
        print_seed(trained, seed)


def print_seed(trained: Trained, seed: int) -> None:
    """A line for each of `FEW`; the seed draws the images and whatever is sampled."""
    images, rows = trained.calibration(N_IMAGES, seed), np.arange(N_IMAGES)
    pixels = images.load(0, N_IMAGES)
    groups = {
        group.name: GroupOnImages(trained.folded, group, images, pixels, exact_max_players=0)
        for group in trained.groups
    }
    cutter = Cutter(trained, pixels, {N_IMAGES: rows})

    def sampled(permutations: int, draw: int) -> Phi:
        return {
            name: group.sampled("plain", permutations, draw, rows).phi
            for name, group in groups.items()
        }

    def accuracy(phi: Phi) -> str:
        scores = {name: np.abs(values).mean(0) for name, values in phi.items()}
        first, *_ = cutter.rows(scores, N_IMAGES, "mean_abs, noisy")  # no ranking that is repaired
        return f"{first['top1']:.1%}"

    many = sampled(MANY, seed)
    for permutations in FEW:
        few, again = (sampled(permutations, draw) for draw in (seed, seed + OTHER))
        noise = {name: (few[name] - again[name]) / 2**0.5 for name in few}
        random = np.random.default_rng(seed)
        added = (
            {name: random.permuted(part, axis=0) for name, part in noise.items()},
            {name: random.permuted(part, axis=1) for name, part in noise.items()},
            {name: random.normal(0, part.std(), part.shape) for name, part in noise.items()},
        )
        found = [few, many, *({name: many[name] + part[name] for name in many} for part in added)]
        print("|", seed, "|", permutations, "|", " | ".join(map(accuracy, found)), "|", flush=True)


if __name__ == "__main__":
    main()
