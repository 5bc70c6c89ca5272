"""Peak memory and operations at the real sizes, counted on fake tensors: exact, without a GPU or real memory.

    python -m benchmarks.counted

Counted are the tensors alive on the device at once, weights apart. What a kernel allocates for itself is not seen.
"""

from __future__ import annotations

import argparse
from functools import partial

from benchmarks.fake import (
    Build,
    authors_decoder,
    authors_unet,
    count,
    host_decoder,
    host_encoder,
    our_decoder,
    our_unet,
)

MIB, GIB = 2**20, 2**30
SIZES = {"512×512": (64, 64), "1024×576": (72, 128), "1024×1024": (128, 128)}
GOALS = {"512×512": (2.6, 1.3), "1024×576": (5.9, 2.9), "1024×1024": (10.5, 5.2)}
"""GiB of one pass, for 128 frames in half precision; the second with skip connections in main memory."""
UNETS: dict[str, Build] = {
    "authors' code": authors_unet,
    "ours, 2 GiB to work in": partial(our_unet, 2048 * MIB),
    "512 MiB (balanced)": partial(our_unet, 512 * MIB),
    "64 MiB": partial(our_unet, 64 * MIB),
    "256 MiB, skips parked (low)": partial(our_unet, 256 * MIB, True),
}
DECODERS: dict[str, Build] = {
    "authors' code": authors_decoder,
    "ComfyUI": host_decoder,
    "ours, 2 GiB to work in": partial(our_decoder, 2048 * MIB),
    "least": partial(our_decoder, 1),
}


def unet_peak(build: Build, frames: int, size: str) -> float:
    """GiB of one pass at a size of `SIZES`."""
    return count(build, (frames, 8, *SIZES[size]), (1, 1024)).bytes / GIB


def decoder_peak(build: Build, frames: int, size: tuple[int, int]) -> float:
    """GiB of decoding one window of latents [frames, 4, *size]."""
    return count(build, (frames, 4, *size)).bytes / GIB


def main() -> None:
    parser = argparse.ArgumentParser(description="Count peak memory and operations, weights apart.")
    parser.add_argument("--frames", type=int, default=128)
    frames = parser.parse_args().frames

    print(f"One pass of the UNet, {frames} frames, half precision, GiB beside the weights\n")
    _head("size", UNETS)
    for size in SIZES:
        _row(size, [unet_peak(build, frames, size) for build in UNETS.values()])

    print("\nDecoding a window of 8 frames, GiB beside the weights\n")
    _head("size", DECODERS)
    for size in SIZES:
        _row(size, [decoder_peak(build, 8, SIZES[size]) for build in DECODERS.values()])

    print("\nEncoding one picture with ComfyUI's encoder, GiB beside the weights\n")
    for size, (height, width) in SIZES.items():
        print(f"- {size}: {count(host_encoder, (1, 3, 8 * height, 8 * width)).bytes / GIB:.2f}")

    print(f"\nTFLOP of one pass, {frames} frames, 512×512\n")
    for name, build in (("authors' code", authors_unet), ("ours", partial(our_unet, None))):
        operations = count(build, (frames, 8, 64, 64), (1, 1024), operations=True).operations
        print(f"- {name}: {operations / 1e12:.1f}", flush=True)


def _head(first: str, names: dict[str, Build]) -> None:
    print(f"| {first} | " + " | ".join(names) + " |\n|---|" + "---|" * len(names))


def _row(name: str, cells: list[float]) -> None:
    print(f"| {name} | " + " | ".join(f"{cell:.2f}" for cell in cells) + " |", flush=True)


if __name__ == "__main__":
    main()
