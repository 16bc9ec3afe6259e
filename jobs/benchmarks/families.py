"""Published networks: how many of their hidden units are scored, why the others are not, and how
far a masked network is from the cut one.

Structure is all that counts here: weights are drawn, and so are the images, small ones. A unit is
scored where a job would score it: every check of a job is made.

python -m jobs.benchmarks.families --readme
"""

import argparse
import multiprocessing
import re
import time
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from fnmatch import fnmatch
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from jobs.benchmarks.networks import ROOT
from jobs.benchmarks.results import RESULTS, Row, fill, markdown, merge, provenance, read
from shapray.constants.place import put_in_place
from shapray.engine.choose import checked_groups
from shapray.inputs.user_code import import_callable
from shapray.network.check import Cut, masked_outputs, random_cuts, relative_error
from shapray.network.cuttable import cuttable
from shapray.network.find import is_hidden
from shapray.network.program import is_program
from shapray.network.surgery import prune_model

PATH = RESULTS / "families.parquet"
EACH, ALL, ERROR = 0.95, 0.99, 1e-5  # what is aimed at: share scored, largest error
SIDE = 64  # of images
SIDES = {"torchvision:inception_v3": 96}  # where 64 is too small
N_IMAGES = 2
N_LEARNT = 16  # that BatchNorms learn from
SEED = 0


def _of(library: str, names: str) -> list[str]:
    return [f"{library}:{name}" for name in names.split()]


TORCHVISION = {  # all that classify and have no attention between places
    "AlexNet": "alexnet",
    "VGG": "vgg11 vgg11_bn vgg13 vgg13_bn vgg16 vgg16_bn vgg19 vgg19_bn",
    "SqueezeNet": "squeezenet1_0 squeezenet1_1",
    "ResNet": "resnet18 resnet34 resnet50 resnet101 resnet152",
    "Wide ResNet": "wide_resnet50_2 wide_resnet101_2",
    "ResNeXt": "resnext50_32x4d resnext101_32x8d resnext101_64x4d",
    "DenseNet": "densenet121 densenet161 densenet169 densenet201",
    "GoogLeNet": "googlenet",
    "Inception v3": "inception_v3",
    "MobileNet v2": "mobilenet_v2",
    "MobileNet v3": "mobilenet_v3_small mobilenet_v3_large",
    "MNASNet": "mnasnet0_5 mnasnet0_75 mnasnet1_0 mnasnet1_3",
    "ShuffleNet v2": "shufflenet_v2_x0_5 shufflenet_v2_x1_0 shufflenet_v2_x1_5 shufflenet_v2_x2_0",
    "EfficientNet": " ".join(f"efficientnet_b{n}" for n in range(8)),
    "EfficientNet v2": "efficientnet_v2_s efficientnet_v2_m efficientnet_v2_l",
    "RegNet X": "regnet_x_400mf regnet_x_800mf regnet_x_1_6gf regnet_x_3_2gf regnet_x_8gf "
    "regnet_x_16gf regnet_x_32gf",
    "RegNet Y": "regnet_y_400mf regnet_y_800mf regnet_y_1_6gf regnet_y_3_2gf regnet_y_8gf "
    "regnet_y_16gf regnet_y_32gf regnet_y_128gf",
    "ConvNeXt": "convnext_tiny convnext_small convnext_base convnext_large",
}
TIMM = {
    "ConvNeXt V2": "convnextv2_atto",
    "CSPNet": "cspresnet50",
    "DLA": "dla34",
    "DPN": "dpn68",
    "ECA-NFNet": "eca_nfnet_l0",
    "EdgeNeXt": "edgenext_xx_small",
    "EfficientNet Lite": "tf_efficientnet_lite0",
    "FastViT": "fastvit_t8",
    "GhostNet": "ghostnet_100",
    "HGNet v2": "hgnetv2_b0",
    "HRNet": "hrnet_w18_small",
    "InceptionNeXt": "inception_next_tiny",
    "LCNet": "lcnet_050",
    "MixNet": "mixnet_s",
    "MobileNet v4": "mobilenetv4_conv_small",
    "MobileOne": "mobileone_s0",
    "NFNet": "dm_nfnet_f0",
    "NF-RegNet": "nf_regnet_b0",
    "RegNet of timm": "regnetx_002",
    "RepVGG": "repvgg_a0",
    "Res2Net": "res2net50_26w_4s",
    "ResNeSt": "resnest14d",
    "ResNet v2": "resnetv2_50",
    "ReXNet": "rexnet_100",
    "SelecSLS": "selecsls42",
    "SK-ResNet": "skresnet18",
    "VoVNet": "ese_vovnet19b_dw",
    "Xception": "xception41",
}
FAMILIES = {family: _of("torchvision", names) for family, names in TORCHVISION.items()} | {
    family: _of("timm", names) for family, names in TIMM.items()
}
FAMILY_OF = {network: family for family, networks in FAMILIES.items() for network in networks}


def built(name: str) -> nn.Module:
    """A network by its name, `library:name`, with drawn weights, in eval mode."""
    torch.manual_seed(SEED)
    quick = {"init_weights": False} if name.endswith((":googlenet", ":inception_v3")) else {}
    with warnings.catch_warnings(action="ignore"):  # how weights are begun
        model: nn.Module = import_callable(name, "network")(**quick)
    return lively(model, SIDES.get(name, SIDE))


def lively(model: nn.Module, side: int) -> nn.Module:
    """Weights as after training, as far as that matters here: no norm is the identity, no branch is
    scaled to nothing, so that a misplaced mask shows; and BatchNorms know what they read, without
    which a deep network's activations are of any size. The network itself, in eval mode."""
    random = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for module in model.modules():
            for name, tensor in module.named_parameters(recurse=False):
                if isinstance(module, nn.Conv2d | nn.Linear) and name == "weight":
                    nn.init.kaiming_normal_(tensor, generator=random)
                elif name == "bias":
                    tensor.normal_(0.0, 0.2, generator=random)
                else:  # of a norm, of a branch
                    tensor.uniform_(0.5, 1.5, generator=random)
        norms = [module for module in model.eval().modules() if isinstance(module, _BatchNorm)]
        for norm in norms:
            norm.train().momentum = 1.0
        model(patches(N_LEARNT, side))
    for norm in norms:
        norm.momentum = 0.1
    return model.eval()


def patches(n_images: int, size: int) -> Tensor:
    """Images of 5 times 5 patches, (n_images, 3, size, size) from 0 to 1."""
    random = torch.Generator().manual_seed(n_images)
    colours = torch.rand(n_images, 3, 5, 5, generator=random)
    return nn.functional.interpolate(colours, size=(size, size))


def measured(name: str) -> Row:
    """A network's row of the table."""
    torch.set_num_threads(1)
    start = time.perf_counter()
    side = SIDES.get(name, SIDE)
    model, images = built(name), patches(N_IMAGES, side)
    n_parameters = sum(p.numel() for p in model.parameters())
    put_in_place(model)
    network, groups = cuttable(model, images[:1])
    hidden = [group for group in groups if is_hidden(group)]
    checked, _ = checked_groups(network, hidden, images, ["*"], SEED)
    excluded = Counter[str]()
    for group in checked:
        if group.reason is not None:
            excluded[in_general(group.reason)] += group.n_units
    scored = [group for group in checked if group.reason is None]
    n_units, n_scored = (sum(group.n_units for group in some) for some in (hidden, scored))
    errors = [error(network, cut, images) for cut in random_cuts(scored, SEED + 1)]
    return {
        "family": FAMILY_OF[name],
        "network": name,
        "side": side,
        "parameters": n_parameters,
        "program": is_program(network),
        "groups": len(hidden),
        "units": n_units,
        "scored": n_scored,
        "excluded": [{"reason": why, "units": n} for why, n in excluded.most_common()],
        "largest_error": max(errors),
        "seconds": time.perf_counter() - start,
    }


def error(network: nn.Module, cut: Cut, images: Tensor) -> float:
    """Of the masked network's outputs against those of the cut one, relative to the largest."""
    groups = [group for group, _ in cut]
    with torch.no_grad():
        pruned = prune_model(network, groups, {group.name: units for group, units in cut})
        found = pruned(images.clone())
    return relative_error(masked_outputs(network, cut, images), found)


def in_general(reason: str) -> str:
    """A reason without the names of layers, so that equal ones can be counted."""
    reason = re.sub(r" in [\w.]+$", "", reason)
    return re.sub(r"^[\w]*[\d.][\w.]*(?=,? )", "a layer", reason)


def measure(patterns: Sequence[str], n_processes: int) -> None:
    """Every network that has no row yet, in a process of its own."""
    known = {row["network"] for row in read(PATH)}
    names = [name for name in FAMILY_OF if any(fnmatch(name, pattern) for pattern in patterns)]
    waiting = [name for name in names if name not in known]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(n_processes, mp_context=context, max_tasks_per_child=1) as pool:
        for future in as_completed(pool.submit(measured, name) for name in waiting):
            row = future.result()
            merge(PATH, [row], ("network",))
            print(f"{row['network']}: {row['seconds']:.0f} s", flush=True)


def table(rows: Sequence[Row]) -> str:
    """A line a family, and one for all."""
    lines = []
    for family, networks in FAMILIES.items():
        own = [row for row in rows if row["family"] == family]
        if own:
            lines.append([family, _in_words(networks, own), *_numbers(own, EACH)])
    lines.append(["all", f"{len(rows)} networks", *_numbers(rows, ALL)])
    header = ["family", "networks", "groups", "units", "scored", "excluded, and why", "error"]
    return markdown(header, lines)


def _in_words(networks: Sequence[str], rows: Sequence[Row]) -> str:
    measured = [row["network"] for row in rows]
    shown = [name.removeprefix("torchvision:") for name in networks if name in measured]
    if len(shown) > 2:
        words = f"`{shown[0]}` … `{shown[-1]}` ({len(shown)})"
    else:
        words = ", ".join(f"`{name}`" for name in shown)
    return words + (" (program)" if any(row["program"] for row in rows) else "")


def _numbers(rows: Sequence[Row], aim: float) -> list[str]:
    n_groups, n_units, n_scored = (
        sum(row[key] for row in rows) for key in ("groups", "units", "scored")
    )
    share, largest = n_scored / n_units, max(row["largest_error"] for row in rows)
    return [
        f"{n_groups:,}",
        f"{n_units:,}",
        _bold(_percent(share), share < aim),
        "; ".join(f"{n:,}: {reason}" for reason, n in excluded(rows).most_common(3)),
        _bold(f"{largest:.0e}".replace("e-0", "e-"), largest > ERROR),
    ]


def excluded(rows: Iterable[Mapping[str, Any]]) -> Counter[str]:
    """Units that are not scored, by the reason."""
    found = Counter[str]()
    for row in rows:
        for entry in row["excluded"]:
            found[entry["reason"]] += entry["units"]
    return found


def _percent(share: float) -> str:
    """Of a share: 100 % is all of it."""
    shown = f"{100 * share if share == 1 else min(100 * share, 99.9):.1f}"
    return f"{shown.removesuffix('.0')} %"


def _bold(text: str, is_missed: bool) -> str:
    return f"**{text}**" if is_missed else text


def main() -> None:
    parser = argparse.ArgumentParser(description="What of published networks can be scored.")
    parser.add_argument("--networks", nargs="+", default=["*"], help="glob patterns")
    parser.add_argument("--processes", type=int, default=1, help="networks at a time")
    parser.add_argument(
        "--tables", action="store_true", help="only print the table of what is there"
    )
    parser.add_argument("--readme", action="store_true", help="put it into the repository's README")
    options = parser.parse_args()
    if not options.tables:
        measure(options.networks, options.processes)
    text = f"{table(read(PATH))}\n\n{provenance(PATH)}"
    print(text)
    if options.readme:
        fill("families", text, ROOT / "README.md")


if __name__ == "__main__":
    main()
