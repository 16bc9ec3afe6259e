"""One task in a process of its own, to see how much memory it takes; `throughput` starts it.

python -m jobs.benchmarks.memory resnet20 layer1.0.conv1 1073741824
"""

import json
import resource
import sys
from pathlib import Path

import torch

import shapray.cluster.ray_pool  # noqa: F401  (ray and all that a worker has loaded)
from jobs.benchmarks.networks import load, selected
from shapray.config import Score
from shapray.shapley.estimators import estimate

TASK_IMAGES = 16


def peak() -> int:
    """Most bytes that this process has had resident so far."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would begin with what the parent had when it started us
        (line,) = (x for x in status.read_text().splitlines() if x.startswith("VmHWM:"))
        return 1024 * int(line.split()[1])
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return resident if sys.platform == "darwin" else 1024 * resident


def main() -> None:
    torch.set_num_threads(1)
    name, group_name, bound = sys.argv[1:]
    network = load(name, TASK_IMAGES)
    (group,) = selected(network, [group_name])
    before = peak()
    game = network.game(network.split(group, memory=int(bound)))
    estimate(game, Score(permutations=8), network.seeds(0, group))
    print(json.dumps({"peak": peak(), "before": before, "n_images": TASK_IMAGES}))


if __name__ == "__main__":
    main()
