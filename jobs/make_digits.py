"""Makes the quickstart's data and network: digits.parquet and digits_cnn.safetensors.

Run from the repository root, with scikit-learn installed (it ships the images):

    python jobs/make_digits.py

Both come out the same to the byte with the same releases of torch, Pillow and pyarrow on the same
kind of CPU. Training takes about half a minute on one core. Besides the cross-entropy, the loss has
an L1 penalty on the hidden linear layer's activity, so that an image wakes only part of the 64
neurons, some images few and some many: the hybrid estimator then takes both of its ways there.
Channels are dropped in training, as in any network that is to be thinned out later: without, such
a small network breaks whichever filter goes.
"""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import safetensors.torch
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from shapray.config import Images, Transform
from shapray.inputs.images import ImageSet, check_disjoint, open_images
from shapray.zoo import digits_cnn

HERE = Path(__file__).parent / "data"
SPLITS = {"calibration": 20, "evaluation": 40}  # images per digit; the rest is for training
SEED = 0
N_EPOCHS = 60
BATCH = 64
ACTIVITY_PENALTY = 0.0012
DROPOUT = 0.1  # of whole channels, at the input of every layer but the first
TRANSFORM = Transform(mode="L")


def png(pixels: np.ndarray) -> bytes:
    """(8, 8) values 0..16 -> 8-bit grey PNG, values times 15."""
    buffer = io.BytesIO()
    Image.fromarray((pixels * 15).astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def write_images(path: Path) -> None:
    """All 1,797 images, split at random within each digit."""
    digits = load_digits()
    random = np.random.default_rng(SEED)
    split = np.full(len(digits.target), "train", dtype=object)
    for label in range(10):
        members = random.permutation(np.flatnonzero(digits.target == label))
        for name, size in SPLITS.items():
            split[members[:size]] = name
            members = members[size:]
    table = pa.table(
        {
            "image_id": pa.array([f"digit/{i:04d}" for i in range(len(split))]),
            "label": pa.array(digits.target, pa.int64()),
            "split": pa.array(split.tolist()),
            "image": pa.array([png(pixels) for pixels in digits.images], pa.binary()),
        }
    )
    pq.write_table(table, path, row_group_size=256, compression="zstd")


def read(path: Path, split: str) -> ImageSet:
    section = Images(source="parquet", path=str(path), where={"split": split})
    return open_images(section, TRANSFORM, split)


def hidden(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """(logits, activity of the hidden linear layer)"""
    seen: list[Tensor] = []
    hook = model.get_submodule("fc2").register_forward_pre_hook(
        lambda _, args: seen.append(args[0])
    )
    logits = model(images)
    hook.remove()
    return logits, seen[0]


def shifted(images: Tensor, random: torch.Generator) -> Tensor:
    """Every image moved by up to one pixel, zeros moving in."""
    padded = F.pad(images, (1, 1, 1, 1))
    moves = torch.randint(0, 3, (len(images), 2), generator=random).tolist()
    return torch.stack([x[:, i : i + 8, j : j + 8] for x, (i, j) in zip(padded, moves)])


def drop_channels(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
    """Hook in front of a layer: in training, some channels of its input are zero."""
    if not module.training:
        return None
    if isinstance(module, nn.Conv2d):
        return (F.dropout2d(inputs[0], DROPOUT),)
    return (F.dropout(inputs[0], DROPOUT),)


def train(images: Tensor, labels: Tensor) -> nn.Module:
    torch.manual_seed(SEED)
    random = torch.Generator().manual_seed(SEED)
    model = digits_cnn()
    dropping = [
        model.get_submodule(name).register_forward_pre_hook(drop_channels)
        for name in ("conv2", "conv3", "fc1", "fc2")
    ]
    steps = N_EPOCHS * (len(images) // BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, total_steps=steps)
    for _ in range(N_EPOCHS):
        order = torch.randperm(len(images), generator=random)
        for batch in order[: len(order) // BATCH * BATCH].split(BATCH):
            logits, activity = hidden(model, shifted(images[batch], random))
            loss = F.cross_entropy(logits, labels[batch])
            loss = loss + ACTIVITY_PENALTY * activity.sum(1).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    for hook in dropping:
        hook.remove()
    return model.eval()


def main() -> None:
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    HERE.mkdir(exist_ok=True)
    write_images(HERE / "digits.parquet")
    sets = {name: read(HERE / "digits.parquet", name) for name in ("train", *SPLITS)}
    for one, other in (("train", "calibration"), ("train", "evaluation"), (*SPLITS,)):
        check_disjoint(sets[one], sets[other])
    pixels = {name: images.load(0, len(images)) for name, images in sets.items()}
    labels = sets["train"].labels
    assert labels is not None
    model = train(pixels["train"], labels)
    safetensors.torch.save_file(model.state_dict(), HERE / "digits_cnn.safetensors")
    with torch.inference_mode():
        for name, images in sets.items():
            logits, activity = hidden(model, pixels[name])
            assert images.labels is not None
            n_correct = int((logits.argmax(1) == images.labels).sum())
            loss = F.cross_entropy(logits, images.labels)
            n_active = (activity > 0).sum(1)
            print(
                f"{name}: {n_correct} of {len(images)} right, cross-entropy {loss:.4f}; "
                f"active of 64 hidden neurons: {int(n_active.min())} to {int(n_active.max())}, "
                f"median {int(n_active.median())}, {int((n_active <= 12).sum())} images <= 12, "
                f"{int((n_active <= 16).sum())} images <= 16"
            )


if __name__ == "__main__":
    main()
