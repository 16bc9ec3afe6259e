"""Fused convolutions compute what the tail computes; their kernels stood in for by plain ones."""

import torch
from cases import case, draw
from torch import fx
from torch.nn import functional as F

from shapray.engine.fuse import fused


def relu_of(x, weight, bias, stride, padding, dilation, groups):
    return F.relu(F.conv2d(x, weight, bias, stride, padding, dilation, groups))


def relu_of_sum(x, weight, other, share, bias, stride, padding, dilation, groups):
    return F.relu(F.conv2d(x, weight, bias, stride, padding, dilation, groups) + share * other)


PLAIN = {
    torch.cudnn_convolution_relu: relu_of,
    torch.cudnn_convolution_add_relu: relu_of_sum,
}


def on_cpu(tail: fx.GraphModule) -> fx.GraphModule:
    for node in tail.graph.nodes:
        node.target = PLAIN.get(node.target, node.target)
    tail.recompile()
    return tail


def kernels(tail: fx.GraphModule) -> list[object]:
    return [node.target for node in tail.graph.nodes if node.target in PLAIN.values()]


def test_fused_tails_have_the_same_outputs(network):
    for group in network.groups:
        game = network.split(group).game(network.images, network.labels, "neg_cross_entropy")
        if game.split.parts is None:
            continue
        asked = draw(len(network.images), group.n_units, 20)
        for tail, outputs in (
            (game.split.masked_tail, game.masked_outputs),
            (game.split.summed_tail, game.outputs),
        ):
            faster = None if tail is None else fused(tail.graph)
            if faster is None:
                continue
            expected, tail.fused = outputs(*asked), on_cpu(faster)
            try:
                assert kernels(tail.fused)
                assert torch.equal(outputs(*asked), expected)
            finally:
                tail.fused = None


def test_every_block_of_a_residual_network_is_two_kernels():
    """The sum with the shortcut is part of the second; a shortcut's own convolution stays."""
    network = case("Residual")
    split = network.split(network.group("stem"))
    found = kernels(on_cpu(fused(split.masked_tail.graph)))
    assert found == [relu_of, relu_of_sum, relu_of, relu_of_sum]


def test_a_tail_without_activated_convolutions_stays():
    network = case("digits")
    assert fused(network.split(network.group("fc1")).masked_tail.graph) is None
