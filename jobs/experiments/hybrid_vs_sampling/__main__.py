"""Hybrid, sampling only and random cuts, compared at equal multiply-adds.

    python -m jobs.experiments.hybrid_vs_sampling            # about an hour on one quiet core
    python -m jobs.experiments.hybrid_vs_sampling --tables --readme

Run from the repository's folder. What is in `results/` is not computed again, and several processes
may share the work: `--seeds 0 1 2`.
"""

import argparse

from jobs.benchmarks.networks import machine
from jobs.experiments.hybrid_vs_sampling import danger, plots, tables
from jobs.experiments.hybrid_vs_sampling.compare import comparable
from jobs.experiments.hybrid_vs_sampling.cuts import seed_rows
from jobs.experiments.hybrid_vs_sampling.networks import PLANS, load, one_thread
from jobs.experiments.hybrid_vs_sampling.results import RESULTS, fill, read, write_piece

WHAT = ("cuts", "danger")


def compute(name: str, what: list[str], seeds: list[int]) -> None:
    """The missing pieces of one network."""
    trained = load(name)
    for seed in seeds if "cuts" in what else ():
        path = RESULTS / "cuts" / f"{name}-{seed}.parquet"
        if not path.exists():
            write_piece(path, seed_rows(trained, seed))
            print(f"{name}: cuts of seed {seed}", flush=True)
    for group in trained.groups if "danger" in what else ():
        path = RESULTS / "danger" / f"{name}-{group.name}.parquet"
        if not path.exists() and (rows := danger.group_rows(trained, group)):
            write_piece(path, rows)
            print(f"{name}: danger in {group.name}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Hybrid against sampling only and random.")
    parser.add_argument("--networks", nargs="+", default=list(PLANS), choices=list(PLANS))
    parser.add_argument("--what", nargs="+", default=list(WHAT), choices=WHAT)
    parser.add_argument("--seeds", nargs="+", type=int, default=list(range(10)))
    parser.add_argument("--tables", action="store_true", help="only print what is there")
    parser.add_argument("--readme", action="store_true", help="put the tables into README.md")
    options = parser.parse_args()
    if not options.tables:
        one_thread()
        print(machine(), flush=True)
        for name in options.networks:
            compute(name, options.what, options.seeds)
    cuts, dangers = comparable(read(RESULTS / "cuts")), read(RESULTS / "danger")
    for title, text in tables.everything(cuts, dangers).items():
        print(f"\n{title}\n\n{text}")
        if options.readme:
            fill(title, text)
    if options.readme:
        plots.draw(cuts, dangers, RESULTS)


if __name__ == "__main__":
    main()
