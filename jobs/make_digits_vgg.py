"""Makes a network in which an image wakes few of the late units: data/digits_vgg.safetensors.

    python -m jobs.make_digits_vgg

Run from the repository root, after `make_digits.py`, on whose `train` split it is trained. The
weights come out the same to the byte with the same release of torch on the same kind of CPU;
training takes half a minute on one quiet core. Besides the cross-entropy, the loss has an L1
penalty on what is behind the ReLU of the last three convolutions, so that most of their units are
silent on an image: few enough are active that the hybrid estimator is exact on most images there.
No channels are dropped in training: the network breaks where a wanted filter goes, which is what
`experiments/hybrid_vs_sampling` is about.
"""

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jobs.make_digits import HERE, SEED, read, shifted
from shapray.inputs.images import check_disjoint
from shapray.zoo import digits_vgg

PENALISED = {"block2.5": 0.01, "block3.2": 0.01, "block3.5": 0.008}
"""The ReLU of each of the last three convolutions: weight of its activity, summed over units."""
N_EPOCHS = 60
BATCH = 64


def activities(model: nn.Module, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """(logits, what comes out of each penalised ReLU)"""
    seen: dict[str, Tensor] = {}

    def watch(name: str) -> torch.utils.hooks.RemovableHandle:
        def keep(_: nn.Module, __: object, output: Tensor) -> None:
            seen[name] = output

        return model.get_submodule(name).register_forward_hook(keep)

    handles = [watch(name) for name in PENALISED]
    logits = model(images)
    for handle in handles:
        handle.remove()
    return logits, seen


def train(images: Tensor, labels: Tensor) -> nn.Module:
    torch.manual_seed(SEED)
    random = torch.Generator().manual_seed(SEED)
    model = digits_vgg()
    steps = N_EPOCHS * (len(images) // BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, total_steps=steps)
    for _ in range(N_EPOCHS):
        order = torch.randperm(len(images), generator=random)
        for batch in order[: len(order) // BATCH * BATCH].split(BATCH):
            logits, seen = activities(model, shifted(images[batch], random))
            loss = F.cross_entropy(logits, labels[batch])
            for name, weight in PENALISED.items():
                loss = loss + weight * seen[name].mean((2, 3)).sum(1).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def main() -> None:
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    splits = ("train", "calibration", "evaluation")
    sets = {name: read(HERE / "digits.parquet", name) for name in splits}
    check_disjoint(sets["train"], sets["evaluation"])
    assert sets["train"].labels is not None
    model = train(sets["train"].load(0, len(sets["train"])), sets["train"].labels)
    safetensors.torch.save_file(model.state_dict(), HERE / "digits_vgg.safetensors")
    with torch.inference_mode():
        for split, images in sets.items():
            logits, seen = activities(model, images.load(0, len(images)))
            assert images.labels is not None
            n_correct = int((logits.argmax(1) == images.labels).sum())
            loss = F.cross_entropy(logits, images.labels)
            print(f"{split}: {n_correct} of {len(images)} right, cross-entropy {loss:.4f}")
            for name, output in seen.items():
                active = output.flatten(2).amax(2) > 0  # (n, units)
                n_active = active.sum(1)
                print(
                    f"  {name}: active of {output.shape[1]} units: {int(n_active.min())} to "
                    f"{int(n_active.max())}, median {int(n_active.median())}, "
                    f"{int((n_active <= 12).sum())} images <= 12, "
                    f"{int(active.any(0).sum())} units on some image"
                )


if __name__ == "__main__":
    main()
