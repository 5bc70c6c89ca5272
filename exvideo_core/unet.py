"""One pass of the host's UNet with its layers led through ours, and as it was before when it returns."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from .chunked import (
    Parked,
    Source,
    Upsampled,
    Work,
    by_convolutions,
    convolved,
    differentiable,
    is_led,
    normalised,
    stand_in,
)
from .extension import LAYERS
from .layers import FRAME_NUMBERS, PositionLayers, check_length, extended_forward, extended_res_block

ATTENTION_PATCHES = {"attn1_patch", "attn1_output_patch", "attn2_patch", "attn2_output_patch", "middle_patch"}
"""What others may have put into the host's transformer blocks, which then must run as they are."""
COMPILE = "exvideo_compile"
"""In the host's `transformer_options`: compiles a function, where the user asked for a compiled model."""
POSITIONS = "exvideo_positions"
"""In the host's `transformer_options`: the new parts that belong to each copy of the UNet, where there are several."""
_MAPS = 3
"""Working memory of an upsampling, and of the last layers, in maps. Generous: a test counts that passes stay within."""
ATTENTION_OVERRIDE = "optimized_attention_override"
"""In the host's `transformer_options`: another's attention function, which may look at any of the options."""


def extended_unet(
    positions: PositionLayers, work: Callable[[torch.Tensor], Work], executor: Any, *args: Any, **kwargs: Any
) -> Any:
    """Run the host's UNet with its layers going through `chunked`, the 16 transformers extended.

    A wrapper in the host's sense: `executor.class_obj` is the live UNet, and calling the executor goes on. The
    UNet is as before when this returns, also by an exception.

    Args:
        positions: the new parts of the 16 layers, but for a copy of the UNet with others, in the options' `POSITIONS`.
        work: how a pass over these latents is to be done.
        executor, args, kwargs: the host's.

    Raises:
        ExVideoError: a clip longer than the extension reaches.
    """
    unet = executor.class_obj
    frames = kwargs.get("num_video_frames") or unet.default_num_video_frames
    # The host hands on its options, and what ControlNets add, by position or by name, as its version likes.
    found = [value for value in (*args, *kwargs.values()) if isinstance(value, dict)]
    options = next((value for value in found if "wrappers" in value), {})
    positions = options.get(POSITIONS, {}).get(unet, positions)
    rows = options.get(FRAME_NUMBERS, range(frames))
    check_length(max(rows) + 1, positions.num_frames, FRAME_NUMBERS in options)
    if positions.change_nothing_on(rows) and not torch.is_grad_enabled():
        return executor(*args, **kwargs)

    patches = options.get("patches", {})
    plain = kwargs.get("image_only_indicator") is not None or attention_is_patched(options)
    doing = work(args[0])
    if not torch.is_grad_enabled():
        doing.layout = layout_for(args[0])
        args = (args[0].contiguous(memory_format=doing.layout), *args[1:])
    if COMPILE in options and ATTENTION_OVERRIDE not in options:
        doing.compile = options[COMPILE]
    maps = _Maps(doing, patches, has_control=any(value is not options for value in found))
    ours = {**options, "patches": maps.patches}
    args = tuple(ours if value is options else value for value in args)
    kwargs = {name: ours if value is options else value for name, value in kwargs.items()}

    # The layers are looked up anew at each call: hooks may have swapped the model since it was patched.
    routes: dict[Any, Callable[..., torch.Tensor]] = {unet.out: partial(_per_frame, doing, unet.out)}
    for layer, position in zip((unet.get_submodule(path) for path in LAYERS.values()), positions, strict=True):
        routes[layer] = partial(extended_forward, layer, position, None if plain else doing)
    between = []  # convolutions from level to level
    for layer in (layer for block in (*unet.input_blocks, unet.middle_block, *unet.output_blocks) for layer in block):
        if hasattr(layer, "time_stack") and layer not in routes:
            routes[layer] = partial(extended_res_block, layer, doing)
        elif type(layer).__name__ == "Upsample":
            routes[layer] = partial(maps.upsample, layer)
            between.append(layer.conv)
        elif type(layer).__name__ == "Downsample":
            between.append(layer.op)
    routes |= {layer: partial(convolved, doing.affine, layer) for layer in between if not is_led(layer)}
    with routed(routes), by_convolutions(args[0]):
        return executor(*args, **kwargs)


def attention_is_patched(options: dict[str, Any]) -> bool:
    """Whether others have put something into the host's transformer blocks, by the host's `transformer_options`."""
    return any(options.get("patches_replace", {}).values()) or not ATTENTION_PATCHES.isdisjoint(
        options.get("patches", {})
    )


def layout_for(x: torch.Tensor) -> torch.memory_format:
    """The layout of maps that a device convolves at its full rate: channels last, in half precision on NVIDIA's
    GPUs and in float32 on processors."""
    on_nvidia = x.is_cuda and not torch.version.hip and x.element_size() == 2
    on_cpu = x.is_cpu and x.dtype == torch.float32
    return torch.channels_last if on_nvidia or on_cpu else torch.contiguous_format


@contextmanager
def routed(routes: dict[Any, Callable[..., torch.Tensor]]) -> Iterator[None]:
    """Lead layers through other forward passes, and leave nothing behind."""
    before = {layer: vars(layer).get("forward") for layer in routes}
    try:
        for layer, forward in routes.items():
            layer.forward = forward
        yield
    finally:
        for layer, forward in before.items():
            vars(layer).pop("forward", None)
            if forward is not None:
                layer.forward = forward


class _Maps:
    """The maps between the layers of one pass, handed on in other ways than the host does it, to save memory.

    Skip connections may wait in main memory, what is upsampled waits in its smaller size, and both reach the next
    ResNet block unjoined. Only where nobody else looks at them.

    Args:
        work: how the pass is done.
        patches: of the host and of others, by name.
        has_control: whether a ControlNet adds to the skip connections.
    """

    def __init__(self, work: Work, patches: dict[str, Any], has_control: bool):
        self._work = work
        self._unseen = not patches.get("output_block_patch")
        self._waiting: Source | None = None
        self._parked: list[Parked] = []
        self._passing: list[torch.Tensor] = []
        # Last of the patches, so that the others see the tensors that they expect.
        self.patches = {**patches, "output_block_patch": [*patches.get("output_block_patch", ()), self._keep_apart]}
        self._parks = work.park and self._unseen and not has_control and not patches.get("input_block_patch_after_skip")
        if self._parks:
            self.patches["input_block_patch"] = [*patches.get("input_block_patch", ()), self._park]
            self.patches["input_block_patch_after_skip"] = [self._pass_on]

    def _park(self, h: torch.Tensor, _options: Any) -> torch.Tensor:
        self._parked.append(Parked(h, self._work.pin))
        self._passing.append(h)
        return stand_in(h, h.shape)

    def _pass_on(self, _stand_in: torch.Tensor, _options: Any) -> torch.Tensor:
        return self._passing.pop()

    def _keep_apart(self, h: torch.Tensor, skip: torch.Tensor, _options: Any) -> tuple[torch.Tensor, torch.Tensor]:
        upsampled, self._waiting = self._waiting, None
        self._work.pending = [upsampled or h, self._parked.pop() if self._parks else skip]
        return h[:, :0], skip[:, :0]

    def upsample(self, layer: Any, x: torch.Tensor, output_shape: Any = None) -> torch.Tensor:
        """The host's upsampling. `output_shape` is the host's: of the map to meet."""
        height, width = (2 * x.shape[2], 2 * x.shape[3]) if output_shape is None else output_shape[2:4]
        shape = torch.Size((len(x), layer.out_channels, height, width))
        upsampled = Upsampled(lambda some: type(layer).forward(layer, some, output_shape), x, shape)
        if self._unseen:
            self._waiting = upsampled
            return stand_in(x, shape)
        out = self._work.empty(x, shape)
        for some in self._work.over(len(x), _MAPS, out[0]):
            out[some] = upsampled[some]
        return out


def _per_frame(work: Work, layers: Any, x: torch.Tensor) -> torch.Tensor:
    """The UNet's last layers, which do not mix frames: a normalisation, and a convolution to the latent's channels."""
    if torch.is_grad_enabled():
        return differentiable.per_frame(work, partial(type(layers).forward, layers), x)
    out = x.new_empty(len(x), layers[-1].out_channels, *x.shape[2:])
    norm, _, conv = layers
    led = any(map(is_led, layers))
    for some in work.over(len(x), _MAPS, x[0]):
        part = x[some]
        out[some] = type(layers).forward(layers, part) if led else conv(normalised(work.affine, norm, part, silu=True))
    return out
