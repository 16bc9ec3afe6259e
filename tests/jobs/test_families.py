"""The table of published networks: what is in it, and how its lines are made."""

import torchvision

from jobs.benchmarks import families

ATTENTION = ("vit_", "swin_", "maxvit_")  # between places: no convolutional networks


def test_every_classifier_of_torchvision_is_in_one_family():
    names = torchvision.models.list_models(module=torchvision.models)
    listed = " ".join(families.TORCHVISION.values()).split()
    assert sorted(listed) == sorted(name for name in names if not name.startswith(ATTENTION))


def row(network, **changes):
    whole = {"program": False, "groups": 5, "units": 1000, "scored": 1000, "excluded": []}
    family = families.FAMILY_OF[network]
    return {"family": family, "network": network, "largest_error": 2e-7} | whole | changes


def test_a_line_a_family_and_one_for_all():
    reason = {"reason": "its channels are mixed by aten::bmm", "units": 100}
    rows = [
        row("torchvision:resnet18"),
        row("torchvision:resnet34", largest_error=3e-5),
        row("timm:edgenext_xx_small", program=True, scored=900, excluded=[reason]),
    ]
    lines = families.table(rows).splitlines()[2:]
    assert lines == [
        "| ResNet | `resnet18`, `resnet34` | 10 | 2,000 | 100 % |  | **3e-5** |",
        "| EdgeNeXt | `timm:edgenext_xx_small` (program) | 5 | 1,000 | **90 %** "
        "| 100: its channels are mixed by aten::bmm | 2e-7 |",
        "| all | 3 networks | 15 | 3,000 | **96.7 %** "
        "| 100: its channels are mixed by aten::bmm | **3e-5** |",
    ]


def test_reasons_lose_the_names_of_layers():
    for reason, general in {
        "its channels are mixed by aten::sum in layer1.0.conv2": "its channels are mixed by "
        "aten::sum",
        "stages.1.attn_last.conv reads it, a Conv1d": "a layer reads it, a Conv1d",
        "it has a single unit": "it has a single unit",
    }.items():
        assert families.in_general(reason) == general
