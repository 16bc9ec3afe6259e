"""Networks inside others that only run them."""

import torch
from torch import nn

from shapray.constants.wrappers import plain_name, unwrapped


def test_a_network_is_taken_out_of_what_runs_it():
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Linear(4, 2))
    assert unwrapped(nn.DataParallel(torch.compile(network))) is network


def test_parts_are_taken_out_under_all_their_names():
    inner = nn.Conv2d(3, 4, 1)
    parallel = nn.DataParallel(inner)
    network = nn.ModuleDict({"one": parallel, "two": parallel, "three": torch.compile(inner)})
    unwrapped(network)
    assert network["one"] is network["two"] is network["three"] is inner


def test_what_was_compiled_in_place_runs_as_written():
    network = nn.Sequential(nn.Conv2d(3, 4, 1))
    network[0].compile()
    ran = []
    network[0].register_forward_hook(lambda *_: ran.append(1))
    unwrapped(network)(torch.zeros(1, 3, 2, 2))
    assert network[0]._compiled_call_impl is None
    assert ran


def test_names_of_tensors():
    assert plain_name("module.features.module.0.weight") == "features.0.weight"
    assert plain_name("_orig_mod.block.modules.weight") == "block.modules.weight"
