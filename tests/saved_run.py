"""A finished run's files for ``load_pruned``, without the run."""

from cut_digits import REMOVED, SIZES
from torch import nn

from shapray.pruning.saved import weights_bytes
from shapray.storage.run_directory import RunDirectory

FACTORIES = """
from torch import nn
from shapray.zoo import digits_cnn

class Pooled(nn.Module):
    def __init__(self, pool):
        super().__init__()
        self.conv1, self.conv2, self.pool = nn.Conv2d(1, 6, 3), nn.Conv2d(6, 8, 3), pool
        self.last = nn.Linear(8, 10)

    def forward(self, x):
        x = self.conv2(self.conv1(x).relu()).relu().flatten(2)  # (n, 8, 16)
        return self.last(x.amax(2) if self.pool == "max" else x.mean(2))

class Aided(Pooled):
    def __init__(self):
        super().__init__("max")
        self.with_aid, self.aid = True, nn.Linear(6, 10)

    def forward(self, x):
        if self.training and self.with_aid:
            aid = self.aid(self.conv1(x).amax((2, 3)))
            return super().forward(x), aid
        return super().forward(x)

def build(pool_key, api_key="none"):
    if api_key != "sEcReT":
        raise KeyError(f"no network for the key {api_key}")
    return Pooled(pool_key)

def needs_a_licence(**kwargs):
    raise PermissionError("no licence for api_key=sEcReT")

def a_number():
    return 3
"""


def files(removed=REMOVED, **model):
    """The contents of run.json and plan.json of a finished run."""
    section = {"source": "callable", "factory": "nobody:calls_it"}
    job = {
        "name": "t",
        "model": {"factory": "shapray.zoo:digits_cnn"} | model,
        "data": {"calibration": section, "evaluation": section},
        "output": "elsewhere",
    }
    run = {
        "job": job,
        "example_shape": [1, 1, 8, 8],
        "stages": {
            "plan": {"state": "done"},
            "prune": {"state": "done"},
            "evaluate": {"state": "done"},
        },
    }
    groups = {name: {"n_units": SIZES[name], "removed": sorted(u)} for name, u in removed.items()}
    return run, {"format": 1, "groups": groups, "ratio": 0.3}


def write_run(url: str, network: nn.Module, removed=REMOVED, **model) -> RunDirectory:
    store = RunDirectory(url)
    run, plan = files(removed, **model)
    store.publish_json("run.json", run)
    store.publish_json("prune/plan.json", plan)
    store.publish("prune/model.safetensors", weights_bytes(network))
    return store
