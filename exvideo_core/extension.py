"""Extension files: the 16 temporal transformer blocks of an ExVideo-extended SVD, in the release's own format.

A file holds 33 tensors a block under the reference's names, `blocks.N.<name>`. Thirty of them replace
weights that SVD has; three are new: the position table, and the kernel and bias of the 3-D convolution.
"""

from __future__ import annotations

import datetime
import math
import os
import statistics
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch

from .files import Shapes, looks_like, open_tensors, save_tensors
from .types import ExVideoError

LAYERS: Mapping[int, str] = {
    7: "input_blocks.1.1",
    17: "input_blocks.2.1",
    29: "input_blocks.4.1",
    39: "input_blocks.5.1",
    51: "input_blocks.7.1",
    61: "input_blocks.8.1",
    83: "middle_block.1",
    113: "output_blocks.3.1",
    123: "output_blocks.4.1",
    133: "output_blocks.5.1",
    144: "output_blocks.6.1",
    154: "output_blocks.7.1",
    164: "output_blocks.8.1",
    175: "output_blocks.9.1",
    185: "output_blocks.10.1",
    195: "output_blocks.11.1",
}
"""The reference's number of each extended block → the layer's path in ComfyUI's UNet, in forward order."""

TRAINED_FRAMES = 25
"""Frames that SVD-XT itself was trained on."""

TABLE = "positional_embedding.embeddings"
KERNEL = "positional_conv.weight"
BIAS = "positional_conv.bias"

_LINEAR = (".weight", ".bias")
REPLACED: Mapping[str, str] = {
    theirs + suffix: ours + suffix
    for theirs, ours, suffixes in (
        ("positional_embedding_proj.0", "time_pos_embed.0", _LINEAR),
        ("positional_embedding_proj.2", "time_pos_embed.2", _LINEAR),
        ("norm_in", "time_stack.0.norm_in", _LINEAR),
        ("act_fn_in.proj", "time_stack.0.ff_in.net.0.proj", _LINEAR),
        ("ff_in", "time_stack.0.ff_in.net.2", _LINEAR),
        ("norm1", "time_stack.0.norm1", _LINEAR),
        ("attn1.to_q", "time_stack.0.attn1.to_q", (".weight",)),
        ("attn1.to_k", "time_stack.0.attn1.to_k", (".weight",)),
        ("attn1.to_v", "time_stack.0.attn1.to_v", (".weight",)),
        ("attn1.to_out", "time_stack.0.attn1.to_out.0", _LINEAR),
        ("norm2", "time_stack.0.norm2", _LINEAR),
        ("attn2.to_q", "time_stack.0.attn2.to_q", (".weight",)),
        ("attn2.to_k", "time_stack.0.attn2.to_k", (".weight",)),
        ("attn2.to_v", "time_stack.0.attn2.to_v", (".weight",)),
        ("attn2.to_out", "time_stack.0.attn2.to_out.0", _LINEAR),
        ("norm_out", "time_stack.0.norm3", _LINEAR),
        ("act_fn_out.proj", "time_stack.0.ff.net.0.proj", _LINEAR),
        ("ff_out", "time_stack.0.ff.net.2", _LINEAR),
    )
    for suffix in suffixes
}
"""Tensor name within a block of the file → within the layer of ComfyUI's UNet."""

_MAPPED_FILES_STAY = os.name == "nt"
"""Whether the system replaces no file that is mapped into memory. Post-tuning replaces its extension, also while it
starts from it, or a graph holds it."""
_HOLES = len(LAYERS)
"""So many matrices of an extension may hold nothing but zeros, one in each block, as somebody may have made them; more
are where a download that kept its place on the disk has stopped."""
_GRAPH = ("prompt", "workflow")
"""Where the host keeps in a file the graph that made it."""
_ADVICE = "Download model.fp16.safetensors of ECNU-CILab/ExVideo-SVD-128f-v1 again, or choose another file."


class PositionWeights(NamedTuple):
    """The new tensors of one layer: table [F, C], kernel [C, C, 3, 3, 3], bias [C]."""

    table: torch.Tensor
    kernel: torch.Tensor
    bias: torch.Tensor


@dataclass(frozen=True)
class Extension:
    """An ExVideo extension: what travels on the EXVIDEO socket.

    Attributes:
        tensors: all 528 tensors under the release's names. They may be views of a memory-mapped file or of a
            loaded model: never written to.
        num_frames: F, the longest clip in frames.
        metadata: what the file says of itself.
        file: where it was read from.
    """

    tensors: Mapping[str, torch.Tensor]
    num_frames: int
    metadata: Mapping[str, str] = field(default_factory=dict)
    file: Path | None = None

    def replaced_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """The 480 weights that take the place of SVD's: key in the UNet, tensor."""
        for block, layer in LAYERS.items():
            for theirs, ours in REPLACED.items():
                yield f"{layer}.{ours}", self.tensors[f"blocks.{block}.{theirs}"]

    def position_weights(self, strength: float = 1.0) -> Iterator[PositionWeights]:
        """The new weights of each layer, blended linearly from a new extension's (0) to these (1)."""
        for block in LAYERS:
            table, kernel, bias = (self.tensors[f"blocks.{block}.{name}"] for name in (TABLE, KERNEL, BIAS))
            if strength == 1.0:
                yield PositionWeights(table, kernel, bias)
                continue
            start = new_position_weights(*table.shape)
            yield PositionWeights(
                # Kept in float32: a half-precision sinusoid would differ from the one SVD computes.
                torch.lerp(start.table, table.float(), strength),
                torch.lerp(start.kernel, kernel.float(), strength).to(kernel.dtype),
                torch.lerp(start.bias, bias.float(), strength).to(bias.dtype),
            )


def position_ids(num_frames: int) -> list[int]:
    """Which of SVD's 25 positions each frame starts from: 0 … 24, then bouncing between 23 and 4."""
    return [*range(min(num_frames, TRAINED_FRAMES)), *_bounced(TRAINED_FRAMES, num_frames)]


def sinusoid(positions: list[int], channels: int, max_period: float = 10000.0) -> torch.Tensor:
    """SVD's embedding of frame positions: cosines, then sines. Float32 [len(positions), channels]."""
    half = channels // 2
    frequencies = torch.exp(-math.log(max_period) * torch.arange(half, dtype=torch.float32) / half)
    angles = torch.tensor(positions, dtype=torch.float32)[:, None] * frequencies[None]
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def new_position_weights(num_frames: int, channels: int) -> PositionWeights:
    """Where training starts: SVD's own sinusoids on bounced positions, and a convolution that changes nothing."""
    kernel = torch.zeros(channels, channels, 3, 3, 3)
    kernel[:, :, 1, 1, 1] = torch.eye(channels)
    return PositionWeights(sinusoid(position_ids(num_frames), channels), kernel, torch.zeros(channels))


def new_extension(base_weight: Callable[[str], torch.Tensor], num_frames: int) -> Extension:
    """A new extension of a base model, before any training. It changes nothing on up to 25 frames.

    Args:
        base_weight: gives the base UNet's weight for a key such as `input_blocks.1.1.time_stack.0.norm1.weight`.
        num_frames: F, the longest clip in frames, ≥ 1.

    Raises:
        ExVideoError: `num_frames` out of range.
    """
    if num_frames < 1:
        raise ExVideoError(f"An extension needs at least 1 frame, got num_frames = {num_frames}.")
    tensors: dict[str, torch.Tensor] = {}
    for block, layer in LAYERS.items():
        for theirs, ours in REPLACED.items():
            tensors[f"blocks.{block}.{theirs}"] = base_weight(f"{layer}.{ours}")
        channels = tensors[f"blocks.{block}.norm_in.weight"].shape[0]
        for name, tensor in zip((TABLE, KERNEL, BIAS), new_position_weights(num_frames, channels), strict=True):
            tensors[f"blocks.{block}.{name}"] = tensor
    return Extension(tensors, num_frames)


def longer_extension(extension: Extension, num_frames: int) -> Extension:
    """An extension that reaches at least `num_frames`: its tables grow by rows that they have.

    By the rule of a new extension's positions: back and forth over the last 20 rows. What it does to clips of the
    length that it knew stays the same.
    """
    known = extension.num_frames
    if num_frames <= known:
        return extension
    rows = torch.tensor([*range(known), *_bounced(known, num_frames)])
    tensors = {k: tensor[rows] if k.endswith(TABLE) else tensor for k, tensor in extension.tensors.items()}
    return Extension(tensors, num_frames, extension.metadata)


def _bounced(known: int, num_frames: int) -> list[int]:
    """The rows that frames beyond the known ones start from: down from the last but one, and up again."""
    if known == 1:
        return [0] * (num_frames - 1)
    reach = min(20, known - 1)
    places = [(frame - known) % (2 * reach) for frame in range(known, num_frames)]
    return [known - 2 - k if k < reach else known - 2 * reach + k for k in places]


def read_extension(path: str | Path) -> Extension:
    """Read an extension file, memory-mapped: about its size in memory, and that shared with the disk's cache.

    One in float8 takes twice its size, in float16. On Windows, all are copied.

    Raises:
        ExVideoError: the file is not an ExVideo extension, or a damaged one; says what it looks like instead.
    """
    with open_tensors(path, _ADVICE) as (file, shapes):
        names = release_names(shapes)
        num_frames = check_layout(Path(path).name, {name: shapes[key] for name, key in names.items()})
        tensors = {name: _kept(file.get_tensor(key)) for name, key in names.items()}
        _check_numbers(tensors, f"{Path(path).name} is a damaged ExVideo extension", _ADVICE)
        return Extension(tensors, num_frames, file.metadata() or {}, Path(path))


def write_extension(
    extension: Extension, path: Path, dtype: torch.dtype = torch.float16, metadata: Mapping[str, str] | None = None
) -> None:
    """Write an extension in the release's own format, whole or not at all.

    Args:
        extension: what to write.
        path: of the file, .safetensors.
        dtype: the release is in float16.
        metadata: texts to store beside `extension.metadata`, the number of frames, the base and today's date. The graph
            that made another file is left out.

    Raises:
        ExVideoError: numbers that are not finite or do not fit `dtype`, or a file that cannot be written.
    """
    tensors = {key: tensor.to("cpu", dtype) for key, tensor in extension.tensors.items()}
    precision = str(dtype).removeprefix("torch.")
    _check_numbers(tensors, f"This ExVideo extension cannot be saved as {precision}", "Try another precision.")
    channels = tensors["blocks.7.norm_in.weight"].shape[0]
    texts = {
        "format": "pt",
        "base": f"Stable Video Diffusion, {channels} channels",
        **{key: text for key, text in extension.metadata.items() if key not in _GRAPH},
        "frames": str(extension.num_frames),
        "date": datetime.date.today().isoformat(),
        **(metadata or {}),
    }
    save_tensors(path, tensors, texts)


def extension_shapes(num_frames: int, channels: Mapping[int, int], context: int) -> dict[str, tuple[int, ...]]:
    """Every tensor of an extension file and its shape.

    Args:
        num_frames: F, rows of the position tables.
        channels: C of each block, by the reference's block number.
        context: width of the image token.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for block in LAYERS:
        c = channels[block]
        wide = {"act_fn_in.proj": (8 * c, c), "act_fn_out.proj": (8 * c, c), "ff_in": (c, 4 * c), "ff_out": (c, 4 * c)}
        wide |= {"positional_embedding_proj.0": (4 * c, c), "positional_embedding_proj.2": (c, 4 * c)}
        wide |= {"attn2.to_k": (c, context), "attn2.to_v": (c, context)}
        for name in REPLACED:
            module, _, kind = name.rpartition(".")
            square = (c,) if module.startswith("norm") else (c, c)
            shape = wide.get(module, square)
            shapes[f"blocks.{block}.{name}"] = shape if kind == "weight" else shape[:1]
        shapes[f"blocks.{block}.{TABLE}"] = (num_frames, c)
        shapes[f"blocks.{block}.{KERNEL}"] = (c, c, 3, 3, 3)
        shapes[f"blocks.{block}.{BIAS}"] = (c,)
    return shapes


def check_fit(name: str, extension: Shapes, unet: Shapes) -> None:
    """Raise ExVideoError unless what an extension replaces is of the same shape in a UNet.

    Args:
        name: of the extension, to be told.
        extension: shapes by the file's names.
        unet: shapes by ComfyUI's.
    """
    for block, layer in LAYERS.items():
        for theirs, ours in REPLACED.items():
            key, shape = f"{layer}.{ours}", extension[f"blocks.{block}.{theirs}"]
            if unet.get(key) != shape:
                got = list(unet[key]) if key in unet else "nothing"
                raise ExVideoError(
                    f"{name} does not fit the model: {key} is {list(shape)} in the extension and {got} in the model. "
                    "Use the base it was trained on, such as svd_xt.safetensors."
                )


def release_names(names: Collection[str]) -> dict[str, str]:
    """The names of an extension's tensors as the release has them → as the file has them.

    Where a whole network was trained, or one wrapped for many devices, all begin with `unet.` or `module.`, say.
    """
    marks = tuple(f"blocks.{block}.{new}" for block in LAYERS for new in (TABLE, KERNEL, BIAS))
    found = (name.removesuffix(mark) for name in names for mark in marks if name.endswith(mark))
    prefix = min(found, key=len, default="")
    return {name.removeprefix(prefix): name for name in names}


def check_layout(name: str, shapes: Shapes) -> int:
    """The number of frames an extension file was trained for, once its tensors are all there and fit.

    Raises:
        ExVideoError: it is something else, or damaged.
    """
    # Damaged or something else? One complete name is enough to be the first.
    if not any(f"blocks.{block}.{new}" in shapes for block in LAYERS for new in (TABLE, KERNEL, BIAS)):
        names = " under other names" if looks_like(shapes) == "an ExVideo extension" else ""
        raise ExVideoError(
            f"{name} should be an ExVideo extension, but it is {looks_like(shapes)}{names}. "
            "Choose a file such as model.fp16.safetensors of ECNU-CILab/ExVideo-SVD-128f-v1."
        )

    def usual(names: Iterable[str], axis: int) -> int:
        # What most tensors say, so that the few that differ are the ones to be told.
        sizes = [shapes[name][axis] for name in names if len(shapes.get(name, ())) > axis]
        return statistics.mode(sizes) if sizes else 0

    num_frames = usual((f"blocks.{block}.{TABLE}" for block in LAYERS), 0)
    context = usual((f"blocks.{block}.attn2.to_k.weight" for block in LAYERS), 1)
    channels = {block: usual((f"blocks.{block}.{name}" for name in REPLACED if "norm" in name), 0) for block in LAYERS}
    expected = extension_shapes(num_frames, channels, context)
    told = [f"{key} is missing" for key in expected if key not in shapes]
    told += [f"{key} is unknown" for key in shapes if key not in expected]
    told += [
        f"{key} is {list(shapes[key])} instead of {list(shape)}"
        for key, shape in expected.items()
        if shapes.get(key, shape) != shape
    ]
    if told:
        more = f", and {len(told) - 3} more" if len(told) > 3 else ""
        raise ExVideoError(f"{name} is a damaged ExVideo extension: {', '.join(told[:3])}{more}. {_ADVICE}")
    if num_frames < 1:
        raise ExVideoError(f"{name} is an ExVideo extension for no frames at all. {_ADVICE}")
    return num_frames


def _check_numbers(tensors: Mapping[str, torch.Tensor], problem: str, advice: str) -> None:
    """Raise ExVideoError unless all tensors hold finite floating-point numbers, and not too many only zeros."""
    # Unlike isfinite(), this makes no mask as large as the tensor: both ends are NaN where any number is.
    ends = {key: torch.aminmax(tensor) for key, tensor in tensors.items() if tensor.is_floating_point()}
    wrong = [key for key in tensors if key not in ends or not all(map(math.isfinite, ends[key]))]
    if wrong:
        raise ExVideoError(
            f"{problem}: {len(wrong)} of its tensors, among them {', '.join(wrong[:3])}, have numbers that are NaN, "
            f"infinite or not floating-point. {advice}"
        )
    empty = [key for key, tensor in tensors.items() if tensor.dim() > 1 and not any(ends[key])]
    if len(empty) > _HOLES:
        raise ExVideoError(
            f"{problem}: {len(empty)} of its tensors, among them {', '.join(empty[:3])}, hold nothing but zeros, as "
            f"where a download was not finished. {advice}"
        )


def _kept(tensor: torch.Tensor) -> torch.Tensor:
    # Float8 has no arithmetic of its own; float16 has all of its numbers.
    if tensor.is_floating_point() and tensor.element_size() == 1:
        return tensor.half()
    return tensor.clone() if _MAPPED_FILES_STAY else tensor
