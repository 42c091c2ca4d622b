"""Train the two sample models of this folder and write them with their data.

The data set is scikit-learn's ``load_digits``: 1797 grey images of 8x8 pixels, which ship inside the package, so
nothing is downloaded. The script writes four files:

``cnn.onnx``         a small residual network; its BatchNormalization nodes are left in the graph on purpose
``vit.onnx``         a small vision transformer; every pixel, seen with its neighbours, is one token
``calibration.npz``  ``image`` float32 [256, 1, 8, 8], training images only
``heldout.npz``      ``image`` float32 [450, 1, 8, 8] and ``label`` int64 [450], never seen in training or calibration

Both models map ``image`` float32 [N, 1, 8, 8], pixels in 0..1, to ``logits`` float32 [N, 10].

Runs are seeded and single-threaded: the same versions on the same processor give the same weights. The last epoch's
weights are kept; held-out images choose no checkpoint.

Needs torch, onnx, onnxscript and scikit-learn; this is the only file of the project that imports torch.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional as F

SEED = 20
CLASSES = 10
SIDE = 8
HELD_OUT = 450
CALIBRATION = 256
BATCH = 64
INPUT, OUTPUT = "image", "logits"


# --- data -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Digits:
    """Images as float32 [n, 1, 8, 8] in 0..1 and labels as int64 [n], split once and for all."""

    train_image: Tensor
    train_label: Tensor
    heldout_image: Tensor
    heldout_label: Tensor


def load_data() -> Digits:
    """Split the data set, each digit in proportion, into training and held-out images."""
    digits = load_digits()
    image = (digits.images / 16).astype(np.float32)[:, None]
    label = digits.target.astype(np.int64)
    parts = train_test_split(image, label, test_size=HELD_OUT, random_state=SEED, stratify=label)
    train_image, heldout_image, train_label, heldout_label = (torch.from_numpy(np.ascontiguousarray(p)) for p in parts)
    return Digits(train_image, train_label, heldout_image, heldout_label)


def augment(image: Tensor) -> Tensor:
    """Shift each image by up to one pixel each way and add a little noise."""
    count = len(image)
    padded = F.pad(image, (1, 1, 1, 1))[:, 0]
    offset = torch.arange(SIDE)
    row = torch.randint(0, 3, (count, 1)) + offset
    column = torch.randint(0, 3, (count, 1)) + offset
    shifted = padded[torch.arange(count)[:, None, None], row[:, :, None], column[:, None, :]]
    return (shifted + 0.04 * torch.randn_like(shifted)).clamp(0, 1)[:, None]


# --- residual network -----------------------------------------------------------------------------------------------


def conv_norm(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Sequential:
    """Convolution without bias, then batch normalization."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


class Residual(nn.Module):
    """Two 3x3 convolutions beside a shortcut, which is a 1x1 convolution where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.first = conv_norm(inputs, outputs, 3, stride)
        self.second = conv_norm(outputs, outputs, 3)
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same else conv_norm(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.second(F.relu(self.first(x))) + self.shortcut(x))


class Cnn(nn.Module):
    """A residual network in small: 16, 32 and 64 channels, the last block strided."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_norm(1, 16, 3)
        self.blocks = nn.Sequential(Residual(16, 16), Residual(16, 32), Residual(32, 64, stride=2))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(64, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        x: Tensor = self.blocks(F.relu(self.stem(image)))
        logits: Tensor = self.head(self.pool(x).flatten(1))
        return logits


# --- vision transformer ---------------------------------------------------------------------------------------------


class Attention(nn.Module):
    """Self-attention written out, with one packed projection for query, key and value."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.scale = (width // heads) ** -0.5
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        packed = self.qkv(x).reshape(batch, tokens, 3, self.heads, width // self.heads)
        q, k, v = packed.permute(2, 0, 3, 1, 4).unbind(0)
        scores = q @ k.transpose(-2, -1) * self.scale
        mixed = scores.softmax(-1) @ v
        y: Tensor = self.out(mixed.transpose(1, 2).reshape(batch, tokens, width))
        return y


class Block(nn.Module):
    """A transformer block that normalizes before attention and before the MLP."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        y: Tensor = x + self.mlp(self.norm2(x))
        return y


class Vit(nn.Module):
    """A vision transformer: overlapping 3x3 patches, learned positions, mean over tokens instead of a class token."""

    def __init__(self, width: int = 64, heads: int = 4, hidden: int = 256, depth: int = 3) -> None:
        super().__init__()
        self.embed = nn.Conv2d(1, width, 3, padding=1)
        self.position = nn.Parameter(torch.empty(1, SIDE * SIDE, width).normal_(std=0.2))
        self.blocks = nn.Sequential(*(Block(width, heads, hidden) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        x: Tensor = self.embed(image).flatten(2).transpose(1, 2) + self.position
        x = self.blocks(x)
        logits: Tensor = self.head(self.norm(x).mean(1))
        return logits


# --- training -------------------------------------------------------------------------------------------------------


def accuracy(model: nn.Module, image: Tensor, label: Tensor) -> float:
    """Share of images whose largest logit is the label's."""
    model.eval()
    with torch.no_grad():
        return float((model(image).argmax(1) == label).float().mean())


def train(model: nn.Module, data: Digits, epochs: int, rate: float) -> None:
    """AdamW under a one-cycle schedule, on freshly augmented images in every epoch."""
    count = len(data.train_image)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.02)
    steps = epochs * -(-count // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.2)
    started = time.monotonic()
    for epoch in range(1, epochs + 1):
        model.train()
        total = 0.0
        for index in torch.split(torch.randperm(count), BATCH):
            logits = model(augment(data.train_image[index]))
            loss = F.cross_entropy(logits, data.train_label[index], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            total += float(loss.detach()) * len(index)
        if epoch % 10 == 0 or epoch == epochs:
            seconds = time.monotonic() - started
            print(f"  epoch {epoch:3d}/{epochs}  loss {total / count:.4f}  {seconds:5.1f} s", flush=True)


# --- export ---------------------------------------------------------------------------------------------------------


def export_cnn(model: nn.Module, path: Path) -> None:
    """Export by tracing; PRESERVE without folding is what keeps each BatchNormalization a node of its own."""
    torch.onnx.export(
        model.eval(),
        (torch.zeros(2, 1, SIDE, SIDE),),
        str(path),
        dynamo=False,
        opset_version=17,
        training=torch.onnx.TrainingMode.PRESERVE,
        do_constant_folding=False,
        input_names=[INPUT],
        output_names=[OUTPUT],
        dynamic_axes={INPUT: {0: "batch"}, OUTPUT: {0: "batch"}},
    )


def export_vit(model: nn.Module, path: Path) -> None:
    """Export by ``torch.export``, which writes LayerNormalization and Gelu as single nodes."""
    torch.onnx.export(
        model.eval(),
        (torch.zeros(2, 1, SIDE, SIDE),),
        str(path),
        dynamo=True,
        opset_version=20,
        external_data=False,
        input_names=[INPUT],
        output_names=[OUTPUT],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        verbose=False,
    )


def strip(path: Path) -> None:
    """Remove what the exporter notes about its source (stack traces hold paths), check the model and save it again."""
    model = onnx.load(path)
    graph = model.graph
    owners = [model, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer]
    for owner in owners:
        owner.ClearField("metadata_props")
        owner.ClearField("doc_string")
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


def save_data(data: Digits, folder: Path) -> None:
    """Write the calibration and the held-out images."""
    np.savez_compressed(folder / "calibration.npz", image=data.train_image[:CALIBRATION].numpy())
    np.savez_compressed(folder / "heldout.npz", image=data.heldout_image.numpy(), label=data.heldout_label.numpy())


def main(argv: Sequence[str] | None = None) -> None:
    """Train, report and export both models."""
    parser = argparse.ArgumentParser(description="Train the sample models on 8x8 digits and export them to ONNX.")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder to write to (this one)")
    parser.add_argument("--epochs", type=int, default=60, help="passes over the training images (%(default)s)")
    options = parser.parse_args(argv)
    if options.epochs < 1:
        parser.error("--epochs must be at least 1")

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    options.out.mkdir(parents=True, exist_ok=True)
    data = load_data()
    save_data(data, options.out)
    for name, kind, rate, export in (("cnn", Cnn, 4e-3, export_cnn), ("vit", Vit, 2e-3, export_vit)):
        torch.manual_seed(SEED)
        model = kind()
        print(f"{name}: {sum(p.numel() for p in model.parameters())} parameters")
        train(model, data, options.epochs, rate)
        seen = accuracy(model, data.train_image, data.train_label)
        unseen = accuracy(model, data.heldout_image, data.heldout_label)
        print(f"  accuracy: training {seen:.2%}, held-out {unseen:.2%}")
        path = options.out / f"{name}.onnx"
        with warnings.catch_warnings():  # the exporter's own: tracing is deprecated but keeps BatchNormalization
            warnings.simplefilter("ignore", DeprecationWarning)
            warnings.simplefilter("ignore", FutureWarning)
            export(model, path)
        strip(path)


if __name__ == "__main__":
    main()
