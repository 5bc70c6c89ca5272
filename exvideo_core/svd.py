"""The layout of a Stable Video Diffusion checkpoint: which tensors it has, and how wide it is.

Every width is read from the tensors, so that a narrower model of SVD's topology loads like SVD itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from .files import looks_like
from .types import LATENT_CHANNELS, ExVideoError

UNET_PREFIX = "model.diffusion_model."
VAE_PREFIX = "first_stage_model."
CLIP_PREFIX = "conditioner.embedders.0.open_clip.model.visual."

Shape = tuple[int, ...]
Named = Iterator[tuple[str, Shape]]

RES_BLOCKS = 2
"""ResNet blocks a level on the way down; one more on the way up. The same in UNet and autoencoder."""
IDS = 3 * 256
"""SVD embeds three numbers, frames a second, motion bucket and augmentation, in 256 channels each."""
HOST_NAMES: Mapping[str, str] = {
    "class_embedding": "vision_model.embeddings.class_embedding",
    "conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "ln_pre": "vision_model.pre_layrnorm",
    "ln_post": "vision_model.post_layernorm",
    "transformer.resblocks": "vision_model.encoder.layers",
    "attn.out_proj": "self_attn.out_proj",
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
"""Parts of the image encoder: OpenCLIP's names, which SVD's checkpoints have → those that ComfyUI has, and saves."""


@dataclass(frozen=True)
class UNetLayout:
    """Widths of the UNet. Transformers sit in all levels but the deepest, and in the middle."""

    channels: int = 320
    multipliers: tuple[int, ...] = (1, 2, 4, 4)
    context: int = 1024

    @property
    def head(self) -> int:
        """Channels of an attention head: SVD's 64, or all of the shallowest level where that is narrower."""
        return min(64, self.channels)

    def tensors(self) -> Named:
        time = 4 * self.channels
        yield from _linear("time_embed.0", self.channels, time)
        yield from _linear("time_embed.2", time, time)
        yield from _linear("label_emb.0.0", IDS, time)
        yield from _linear("label_emb.0.2", time, time)
        yield from _conv("input_blocks.0.0", 2 * LATENT_CHANNELS, self.channels)
        width, skips, block = self.channels, [self.channels], 1
        deepest = len(self.multipliers) - 1
        for level, multiplier in enumerate(self.multipliers):
            for _ in range(RES_BLOCKS):
                out = multiplier * self.channels
                yield from self._layers(f"input_blocks.{block}", width, out, level < deepest)
                width, block = out, block + 1
                skips.append(width)
            if level < deepest:
                yield from _conv(f"input_blocks.{block}.0.op", width, width)
                skips.append(width)
                block += 1
        yield from self._layers("middle_block", width, width, True)
        yield from _res_block_3d("middle_block.2", width, width, time)
        block = 0
        for level, multiplier in reversed(list(enumerate(self.multipliers))):
            for i in range(RES_BLOCKS + 1):
                out = multiplier * self.channels
                yield from self._layers(f"output_blocks.{block}", width + skips.pop(), out, level < deepest)
                width = out
                if level > 0 and i == RES_BLOCKS:
                    yield from _conv(f"output_blocks.{block}.{1 + (level < deepest)}.conv", width, width)
                block += 1
        yield from _norm("out.0", self.channels)
        yield from _conv("out.2", self.channels, LATENT_CHANNELS)

    def _layers(self, name: str, width: int, out: int, transformer: bool) -> Named:
        yield from _res_block_3d(f"{name}.0", width, out, 4 * self.channels)
        if not transformer:
            return
        name = f"{name}.1"
        yield from _norm(f"{name}.norm", out)
        yield from _linear(f"{name}.proj_in", out, out)
        yield from _transformer_block(f"{name}.transformer_blocks.0", out, self.context)
        yield from _linear(f"{name}.proj_out", out, out)
        yield from _transformer_block(f"{name}.time_stack.0", out, self.context)
        yield from _norm(f"{name}.time_stack.0.norm_in", out)
        yield from _feed_forward(f"{name}.time_stack.0.ff_in", out)
        yield from _linear(f"{name}.time_pos_embed.0", out, 4 * out)
        yield from _linear(f"{name}.time_pos_embed.2", 4 * out, out)
        yield f"{name}.time_mixer.mix_factor", (1,)


@dataclass(frozen=True)
class VAELayout:
    """Widths of the autoencoder: a per-frame encoder, a temporal decoder."""

    channels: int = 128
    multipliers: tuple[int, ...] = (1, 2, 4, 4)

    def config(self) -> dict[str, Any]:
        """As ComfyUI's encoder and decoder take it."""
        return {
            "ch": self.channels,
            "ch_mult": list(self.multipliers),
            "num_res_blocks": RES_BLOCKS,
            "z_channels": LATENT_CHANNELS,
            "double_z": True,
            "in_channels": 3,
            "out_ch": 3,
            "resolution": 256,
            "attn_resolutions": [],
            "dropout": 0.0,
        }

    def tensors(self) -> Named:
        widths = [m * self.channels for m in self.multipliers]
        deepest = len(widths) - 1
        yield from _conv("encoder.conv_in", 3, self.channels)
        width = self.channels
        for level, out in enumerate(widths):
            for i in range(RES_BLOCKS):
                yield from _res_block_2d(f"encoder.down.{level}.block.{i}", width, out)
                width = out
            if level < deepest:
                yield from _conv(f"encoder.down.{level}.downsample.conv", width, width)
        yield from self._middle("encoder", width, temporal=False)
        yield from _norm("encoder.norm_out", width)
        yield from _conv("encoder.conv_out", width, 2 * LATENT_CHANNELS)

        yield from _conv("decoder.conv_in", LATENT_CHANNELS, width)
        yield from self._middle("decoder", width, temporal=True)
        for level, out in reversed(list(enumerate(widths))):
            for i in range(RES_BLOCKS + 1):
                yield from _res_block_2d(f"decoder.up.{level}.block.{i}", width, out, temporal=True)
                width = out
            if level > 0:
                yield from _conv(f"decoder.up.{level}.upsample.conv", width, width)
        yield from _norm("decoder.norm_out", width)
        yield from _conv("decoder.conv_out", width, 3)
        yield from _conv("decoder.conv_out.time_mix_conv", 3, 3, (3, 1, 1))

    @staticmethod
    def _middle(part: str, width: int, temporal: bool) -> Named:
        yield from _res_block_2d(f"{part}.mid.block_1", width, width, temporal)
        yield from _norm(f"{part}.mid.attn_1.norm", width)
        for name in ("q", "k", "v", "proj_out"):
            yield from _conv(f"{part}.mid.attn_1.{name}", width, width, (1, 1))
        yield from _res_block_2d(f"{part}.mid.block_2", width, width, temporal)


@dataclass(frozen=True)
class CLIPLayout:
    """Widths of the image encoder, a vision transformer under OpenCLIP's names."""

    width: int = 1280
    layers: int = 32
    hidden: int = 5120
    patch: int = 14
    image: int = 224
    projection: int = 1024

    @property
    def heads(self) -> int:
        """Attention heads: of 80 channels as in ViT-H, or a single one where the encoder is narrower."""
        return max(1, self.width // 80)

    def config(self) -> dict[str, Any]:
        """As ComfyUI's image encoder takes it, in the form of a Hugging Face `config.json`."""
        return {
            "model_type": "clip_vision_model",
            "hidden_act": "gelu",
            "hidden_size": self.width,
            "intermediate_size": self.hidden,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_channels": 3,
            "patch_size": self.patch,
            "image_size": self.image,
            "projection_dim": self.projection,
            "layer_norm_eps": 1e-5,
        }

    def tensors(self) -> Named:
        yield "class_embedding", (self.width,)
        yield "positional_embedding", ((self.image // self.patch) ** 2 + 1, self.width)
        yield "proj", (self.width, self.projection)
        yield "conv1.weight", (self.width, 3, self.patch, self.patch)
        for name in ("ln_pre", "ln_post"):
            yield from _norm(name, self.width)
        for i in range(self.layers):
            name = f"transformer.resblocks.{i}"
            yield f"{name}.attn.in_proj_weight", (3 * self.width, self.width)
            yield f"{name}.attn.in_proj_bias", (3 * self.width,)
            yield from _linear(f"{name}.attn.out_proj", self.width, self.width)
            yield from _norm(f"{name}.ln_1", self.width)
            yield from _norm(f"{name}.ln_2", self.width)
            yield from _linear(f"{name}.mlp.c_fc", self.width, self.hidden)
            yield from _linear(f"{name}.mlp.c_proj", self.hidden, self.width)

    def saved_tensors(self) -> Named:
        """As ComfyUI saves them: under its own names, with queries, keys and values apart."""
        for key, shape in self.tensors():
            name = _host_name(key)
            if key == "proj":
                yield "visual_projection.weight", shape[::-1]
            elif ".in_proj_" in key:
                for part in "qkv":
                    yield name.replace("attn.in_proj_", f"self_attn.{part}_proj."), (self.width, *shape[1:])
            else:
                yield name, shape


@dataclass(frozen=True)
class SVDLayout:
    """The widths of a whole checkpoint; the defaults are Stable Video Diffusion's own."""

    unet: UNetLayout = UNetLayout()
    vae: VAELayout = VAELayout()
    clip: CLIPLayout = CLIPLayout()

    def tensors(self, saved: bool = False) -> dict[str, Shape]:
        """Every tensor of the checkpoint and its shape, under SVD's own names, or as ComfyUI has saved it."""
        parts = {
            UNET_PREFIX: self.unet.tensors(),
            VAE_PREFIX: self.vae.tensors(),
            CLIP_PREFIX: self.clip.saved_tensors() if saved else self.clip.tensors(),
        }
        return {prefix + key: shape for prefix, part in parts.items() for key, shape in part}


def read_layout(name: str, shapes: Mapping[str, Shape]) -> SVDLayout:
    """Read the widths of an SVD checkpoint, a downloaded one or one that ComfyUI saved, from its tensors' shapes.

    Raises:
        ExVideoError: the file is something else, or a part of it is missing or does not fit the rest.
    """
    saved = CLIP_PREFIX + _host_name("conv1.weight") in shapes

    def of_clip(key: str) -> Shape:
        return shapes[CLIP_PREFIX + (_host_name(key) if saved else key)]

    try:
        unet = UNetLayout(
            channels=shapes[UNET_PREFIX + "input_blocks.0.0.weight"][0],
            multipliers=tuple(
                shapes[f"{UNET_PREFIX}input_blocks.{block}.0.out_layers.3.weight"][0]
                // shapes[UNET_PREFIX + "input_blocks.0.0.weight"][0]
                for block in (1, 4, 7, 10)
            ),
            context=shapes[UNET_PREFIX + "input_blocks.1.1.time_stack.0.attn2.to_k.weight"][1],
        )
        vae = VAELayout(
            channels=shapes[VAE_PREFIX + "encoder.conv_in.weight"][0],
            multipliers=tuple(
                shapes[f"{VAE_PREFIX}encoder.down.{level}.block.0.conv1.weight"][0]
                // shapes[VAE_PREFIX + "encoder.conv_in.weight"][0]
                for level in range(4)
            ),
        )
        width, _, patch, _ = of_clip("conv1.weight")
        cells = of_clip("positional_embedding")[0] - 1
        clip = CLIPLayout(
            width=width,
            layers=sum(
                key.startswith(CLIP_PREFIX) and key.endswith((".ln_1.weight", ".layer_norm1.weight")) for key in shapes
            ),
            hidden=of_clip("transformer.resblocks.0.mlp.c_fc.weight")[0],
            patch=patch,
            image=round(cells**0.5) * patch,
            projection=of_clip("visual_projection.weight")[0] if saved else of_clip("proj")[1],
        )
    except KeyError as missing:
        raise ExVideoError(
            f"{name} should be a whole Stable Video Diffusion checkpoint, but it is {looks_like(shapes)}, without "
            f"{missing.args[0]}. Choose an image-to-video one such as svd_xt.safetensors."
        ) from None
    except (IndexError, ValueError, ZeroDivisionError):  # of fewer dimensions, or of none of a size
        raise ExVideoError(
            f"{name} is damaged or not of Stable Video Diffusion's form: some of its first tensors are of the wrong "
            "shape. Choose one such as svd_xt.safetensors."
        ) from None
    layout = SVDLayout(unet, vae, clip)
    expected = layout.tensors(saved)
    wrong = [key for key, shape in expected.items() if shapes.get(key) != shape]
    if wrong and {key for key in wrong if key not in shapes} == {key for key in expected if _is_of_frames(key)}:
        raise ExVideoError(
            f"{name} has a decoder for single pictures, without the layers that look from frame to frame. Choose the "
            "file without image_decoder in its name, such as svd_xt.safetensors."
        )
    if wrong:
        raise ExVideoError(
            f"{name} is damaged or not of Stable Video Diffusion's form: {len(wrong)} of its tensors are missing or "
            f"of the wrong shape, among them {', '.join(wrong[:3])}. Choose one such as svd_xt.safetensors."
        )
    return layout


def _is_of_frames(key: str) -> bool:
    """Whether a tensor belongs to what the decoder of videos has beside that of pictures."""
    return key.startswith(f"{VAE_PREFIX}decoder.") and any(part in key for part in (".time_", ".mix_factor"))


def _host_name(key: str) -> str:
    for name, hosts in HOST_NAMES.items():
        key = key.replace(name, hosts)
    return key


def _linear(name: str, inputs: int, outputs: int) -> Named:
    yield f"{name}.weight", (outputs, inputs)
    yield f"{name}.bias", (outputs,)


def _conv(name: str, inputs: int, outputs: int, kernel: Shape = (3, 3)) -> Named:
    yield f"{name}.weight", (outputs, inputs, *kernel)
    yield f"{name}.bias", (outputs,)


def _norm(name: str, channels: int) -> Named:
    yield f"{name}.weight", (channels,)
    yield f"{name}.bias", (channels,)


def _feed_forward(name: str, channels: int) -> Named:
    yield from _linear(f"{name}.net.0.proj", channels, 8 * channels)
    yield from _linear(f"{name}.net.2", 4 * channels, channels)


def _transformer_block(name: str, channels: int, context: int) -> Named:
    for attention, source in (("attn1", channels), ("attn2", context)):
        yield f"{name}.{attention}.to_q.weight", (channels, channels)
        yield f"{name}.{attention}.to_k.weight", (channels, source)
        yield f"{name}.{attention}.to_v.weight", (channels, source)
        yield from _linear(f"{name}.{attention}.to_out.0", channels, channels)
    yield from _feed_forward(f"{name}.ff", channels)
    for i in (1, 2, 3):
        yield from _norm(f"{name}.norm{i}", channels)


def _res_block(name: str, inputs: int, outputs: int, time: int, kernel: Shape) -> Named:
    yield from _norm(f"{name}.in_layers.0", inputs)
    yield from _conv(f"{name}.in_layers.2", inputs, outputs, kernel)
    if time:
        yield from _linear(f"{name}.emb_layers.1", time, outputs)
    yield from _norm(f"{name}.out_layers.0", outputs)
    yield from _conv(f"{name}.out_layers.3", outputs, outputs, kernel)


def _res_block_3d(name: str, inputs: int, outputs: int, time: int) -> Named:
    """The UNet's: a spatial block, a temporal one, and the factor that mixes them."""
    yield from _res_block(name, inputs, outputs, time, (3, 3))
    if inputs != outputs:
        yield from _conv(f"{name}.skip_connection", inputs, outputs, (1, 1))
    yield from _res_block(f"{name}.time_stack", outputs, outputs, time, (3, 1, 1))
    yield f"{name}.time_mixer.mix_factor", (1,)


def _res_block_2d(name: str, inputs: int, outputs: int, temporal: bool = False) -> Named:
    """The autoencoder's; in the decoder a temporal block follows."""
    yield from _norm(f"{name}.norm1", inputs)
    yield from _conv(f"{name}.conv1", inputs, outputs)
    yield from _norm(f"{name}.norm2", outputs)
    yield from _conv(f"{name}.conv2", outputs, outputs)
    if inputs != outputs:
        yield from _conv(f"{name}.nin_shortcut", inputs, outputs, (1, 1))
    if temporal:
        yield from _res_block(f"{name}.time_stack", outputs, outputs, 0, (3, 1, 1))
        yield f"{name}.mix_factor", (1,)
