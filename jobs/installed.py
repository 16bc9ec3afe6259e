"""Tries an installed package from outside the repository: every module, and README.md's example.

cd ELSEWHERE && python REPOSITORY/jobs/installed.py
"""

import importlib
import pkgutil
from pathlib import Path
from typing import Any

import torch

import shapray
from shapray.zoo import resnet20

REPOSITORY = Path(__file__).resolve().parents[1]


def example() -> str:
    """The code in README.md that scores a network."""
    blocks = (REPOSITORY / "README.md").read_text().split("```python\n")[1:]
    return next(
        code for block in blocks for code in [block.split("```")[0]] if "shapray.score(" in code
    )


def main() -> None:
    where = Path(shapray.__file__).parent
    assert where != REPOSITORY / "shapray", f"{where} is the checkout, not an installed package"
    found = [module.name for module in pkgutil.walk_packages([str(where)], "shapray.")]
    commands = ("shapray.prune", "shapray.compare")  # only run, see there
    modules = [name for name in found if name not in commands]
    for name in modules:
        importlib.import_module(name)
    print(f"shapray {shapray.__version__} in {where}: {len(modules)} modules")
    torch.manual_seed(0)
    images, labels = torch.rand(12, 3, 32, 32), torch.arange(12) % 10
    names: dict[str, Any] = {
        "model": resnet20().eval(),
        "images": images,
        "labels": labels,
        "test_images": 1 - images,
        "test_labels": labels,
    }
    exec(compile(example(), "README.md", "exec"), names)
    print(names["scores"], names["cut"].keys())


if __name__ == "__main__":
    main()
