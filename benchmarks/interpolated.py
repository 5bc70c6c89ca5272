"""Frames that were removed, made again: quality and speed of ours beside what else there is.

    python -m benchmarks.interpolated

Every second frame of videos of known motion is removed and restored by: a blend, ffmpeg's minterpolate (motion
compensated, both directions), plain warping by OpenCV's DIS flow, and ExVideo Interpolate with either of its flows, and
with that of a library, scikit-image, by the method of its own.
"""

from __future__ import annotations

import importlib
import itertools
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import imageio_ffmpeg
import torch
from kornia.metrics import ssim
from skimage.registration import optical_flow_ilk

from benchmarks.motion import CASES, SIDE, video
from exvideo_core.flow import Check, Flow, even_grey, lucas_kanade_flow, nothing, opencv_flow, warp
from exvideo_core.interpolate import FlowBetween

FRAMES = 9
EDGE = 8
"""Pixels at the edges that are not counted: what comes in there, no frame shows."""

Restore = Callable[[torch.Tensor], torch.Tensor]
"""Every second frame of a video → the frames between."""


def main() -> None:
    torch.set_num_threads(1)
    importlib.import_module("cv2").setNumThreads(1)
    print("PSNR in dB / SSIM of the restored frames; frames a second on one core")
    print("| " + " | ".join(["case", *METHODS]) + " |")
    print("|---" * (len(METHODS) + 1) + "|")
    psnrs: dict[str, list[float]] = {name: [] for name in METHODS}
    rates: dict[str, list[float]] = {name: [] for name in METHODS}
    for case in CASES:
        cells = []
        for name, (psnr, alike, rate) in measured(case, METHODS, FRAMES).items():
            cells.append(f"{psnr:.1f} / {alike:.3f}")
            psnrs[name].append(psnr)
            rates[name].append(rate)
        print("| " + " | ".join([case, *cells]) + " |", flush=True)
    print("| mean | " + " | ".join(f"{statistics.mean(values):.1f}" for values in psnrs.values()) + " |")
    print("| frames a second | " + " | ".join(f"{statistics.median(v):.3g}" for v in rates.values()) + " |")


def measured(case: str, methods: dict[str, Restore], frames: int = 3) -> dict[str, tuple[float, float, float]]:
    """PSNR, SSIM and frames a second of each method on a case of so many frames, an odd number."""
    whole = video(case, frames)
    results = {}
    for name, restore in methods.items():
        begun = time.perf_counter()
        found = restore(whole[::2])
        seconds = time.perf_counter() - begun
        ours, right = (each.movedim(-1, 1)[..., EDGE:-EDGE, EDGE:-EDGE] for each in (found, whole[1::2]))
        psnr = float(-10 * (ours - right).square().mean((1, 2, 3)).log10().mean())
        results[name] = psnr, float(ssim(ours, right, 7).mean()), len(found) / seconds
    return results


def blend(kept: torch.Tensor) -> torch.Tensor:
    return (kept[:-1] + kept[1:]) / 2


def minterpolate(kept: torch.Tensor) -> torch.Tensor:
    """ffmpeg's own, from a lossless file, and read without loss."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kept.mkv")
        tool = imageio_ffmpeg.get_ffmpeg_exe()
        size = f"{SIDE}x{SIDE}"
        raw = ["-f", "rawvideo", "-pix_fmt", "rgb24"]
        pixels = (kept * 255).round().byte().numpy().tobytes()
        write = [tool, "-v", "error", *raw, "-s", size, "-r", "15", "-i", "pipe:0", "-c:v", "ffv1", str(path)]
        subprocess.run(write, input=pixels, check=True)
        filters = "minterpolate=fps=30:mi_mode=mci:mc_mode=aobmc:me_mode=bidir:vsbmc=1:scd=none"
        # It needs frames beyond the last one to get there.
        read = [tool, "-v", "error", "-i", str(path), "-vf", f"tpad=stop=3:stop_mode=clone,{filters}", *raw, "pipe:1"]
        found = subprocess.run(read, capture_output=True, check=True).stdout
    frames = torch.frombuffer(bytearray(found), dtype=torch.uint8).view(-1, SIDE, SIDE, 3)
    return frames[1 : 2 * len(kept) - 2 : 2].float() / 255


def plain_warping(kept: torch.Tensor) -> torch.Tensor:
    """Half way along OpenCV's DIS flow from each side, and the mean of both: the floor."""

    def between(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        return (warp(first, opencv_flow(second, first) / 2) + warp(second, opencv_flow(first, second) / 2)) / 2

    frames = kept.movedim(-1, 1)
    return torch.stack([between(*pair) for pair in itertools.pairwise(frames)]).movedim(1, -1)


def scikit_image_flow(first: torch.Tensor, second: torch.Tensor, _check: Check = nothing) -> torch.Tensor:
    """Lucas-Kanade, too, on the frames that ours sees."""
    before, after = (even_grey(frame).numpy() for frame in (first, second))
    down, right = optical_flow_ilk(before, after, radius=7, num_warp=6, gaussian=True)
    return torch.stack([torch.from_numpy(right), torch.from_numpy(down)]).float()


def by(flow: Flow) -> Restore:
    """ExVideo Interpolate with a flow."""

    def restore(kept: torch.Tensor) -> torch.Tensor:
        between = FlowBetween(flow=flow)

        def frames() -> Iterator[torch.Tensor]:
            for first, second in itertools.pairwise(kept):
                yield from between(first, second, [0.5])

        return torch.stack(list(frames()))

    return restore


METHODS: dict[str, Restore] = {
    "blend": blend,
    "minterpolate": minterpolate,
    "plain warping, DIS": plain_warping,
    "ours, OpenCV": by(opencv_flow),
    "ours, without OpenCV": by(lucas_kanade_flow),
    "ours, scikit-image's flow": by(scikit_image_flow),
}

if __name__ == "__main__":
    main()
