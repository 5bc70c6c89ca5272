"""The networks at SVD's own size with random weights, and what is timed on them: ours, the authors', ComfyUI's own."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch

from dev import reference
from dev.inside import become_host, core, svd_model

AUTHORS, OURS, HOST = "the authors' code", "ExVideo in ComfyUI", "SVD in ComfyUI, not extended"
COMPILED = ", compiled"
IDS, TIMESTEP = (29, 127, 0.02), 0.4

Step = Callable[[], Any]


class Contender(NamedTuple):
    """What puts the weights in place, which is not timed, and what is timed."""

    prepare: Step
    run: Step


class Networks:
    """All contenders on the same weights.

    Args:
        device, dtype: where and in what they compute.
        arguments: what ComfyUI is started with.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype, *arguments: str):
        become_host(*arguments)
        self._device, self._dtype = device, dtype
        self._host, svd, tiny = (core(name) for name in ("host", "svd", "tiny"))
        self._layout = svd.SVDLayout()
        drawn = tiny.draw_checkpoint(self._layout, part=(svd.UNET_PREFIX, svd.VAE_PREFIX), device=device)
        extension = tiny.draw_extension(drawn, 128)
        tensors = {key: tensor.to(device, dtype) for key, tensor in extension.tensors.items()}
        self.extension = type(extension)(tensors, extension.num_frames)
        self._weights = {key: tensor.to(device, dtype) for key, tensor in drawn.items()}
        self.base = svd_model(self._weights, device, dtype)
        self._extended = self._host.apply_extension(self.base, self.extension)
        self._authors = reference.unet(self._weights, self.extension)
        self._generator = torch.Generator().manual_seed(0)

    def _drawn(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=self._generator).to(self._device, self._dtype)

    def unet_pass(self, frames: int, height: int, width: int, memory: str = "auto") -> dict[str, Contender]:
        """One pass of the UNet over one clip; ours by a setting of memory."""
        x, token = self._drawn(frames, 8, height, width), self._drawn(1, 1, 1024)
        ids = torch.tensor([IDS], device=self._device, dtype=self._dtype)

        def in_host(model: Any) -> Contender:
            adm = model.model.encode_adm(fps=IDS[0] + 1, motion_bucket_id=IDS[1], augmentation_level=IDS[2])
            inputs = (
                torch.full((frames,), TIMESTEP, device=self._device, dtype=self._dtype),
                token.expand(frames, -1, -1),
                adm.to(x).expand(frames, -1),
            )
            options = {"wrappers": model.wrappers}
            unet = model.model.diffusion_model
            run = partial(unet, x, *inputs, transformer_options=options, num_video_frames=frames)
            return Contender(partial(_load, model), run)

        return {
            AUTHORS: Contender(_nothing, lambda: self._authors(x, TIMESTEP, token[0], ids)),
            OURS: in_host(self._host.apply_extension(self.base, self.extension, memory=memory)),
            HOST: in_host(self.base),
        }

    def guided_step(self, frames: int, height: int, width: int, compiler: str = "") -> dict[str, Contender]:
        """One step of sampling with guidance: two passes, and all around them.

        With a compiler, a backend of `torch.compile`, also by the host's way to compile a model.
        """
        x, image, token = (
            self._drawn(frames, 4, height, width),
            self._drawn(1, 4, height, width),
            self._drawn(1, 1, 1024),
        )
        ids = torch.tensor([IDS], device=self._device, dtype=self._dtype)
        joined = torch.cat([x, image.expand_as(x)], 1)

        def authors() -> torch.Tensor:
            cond, uncond = (self._authors(joined, TIMESTEP, token[0] * sign, ids) for sign in (1, 0))
            guided: torch.Tensor = x + 0.1 * (uncond + 2 * (cond - uncond))
            return guided

        named = dict(zip(("fps", "motion_bucket_id", "augmentation_level"), (IDS[0] + 1, *IDS[1:]), strict=True))
        positive, negative = (
            [[(token * sign).float(), {**named, "concat_latent_image": image.float()}]] for sign in (1, 0)
        )
        latent, sigmas = {"samples": torch.zeros(x.shape)}, torch.tensor([10.0, 8.0])
        guidance = core("sampling").linear_guidance(1.0, 3.0)

        def in_host(model: Any) -> Contender:
            inputs = model, positive, negative, x.float().cpu(), latent, sigmas, 3.0, guidance, 0
            return Contender(partial(_load, model), partial(self._host.sample_euler, *inputs))

        contenders = {
            AUTHORS: Contender(_nothing, authors),
            OURS: in_host(self._extended),
            HOST: in_host(self.base),
        }
        if compiler:
            contenders[OURS + COMPILED] = in_host(_compiled(self._extended, compiler))
            contenders[HOST + COMPILED] = in_host(_compiled(self.base, compiler))
        return contenders

    def decoding(self, frames: int, height: int, width: int) -> dict[str, Contender]:
        """Decoding one window."""
        x = self._drawn(frames, 4, height, width)
        authors, decoder = reference.vae_decoder(self._weights), self._autoencoder().decoder
        chunked, budget = core("chunked"), core("budget")
        size = budget.CPU_BUDGET if self._device.type == "cpu" else budget.BUDGETS["auto"][1]
        return {
            AUTHORS: Contender(_nothing, lambda: authors(x.transpose(0, 1))),
            OURS: Contender(_nothing, lambda: chunked.decode(chunked.Work(size), decoder, x)),
            HOST: Contender(_nothing, lambda: decoder(x)),
        }

    def encoding(self, height: int, width: int) -> dict[str, Contender]:
        """Encoding one picture: ours is the host's."""
        pixels = self._drawn(1, 3, 8 * height, 8 * width)
        authors, encoder = reference.vae_encoder(self._weights), self._autoencoder().encoder
        return {
            AUTHORS: Contender(_nothing, lambda: authors(pixels)),
            HOST: Contender(_nothing, lambda: encoder(pixels)),
        }

    def _autoencoder(self) -> Any:
        with torch.device("meta"):
            network = core("host.checkpoint").autoencoder(self._layout)
        prefix = core("svd").VAE_PREFIX
        tensors = {key.removeprefix(prefix): tensor for key, tensor in self._weights.items() if key.startswith(prefix)}
        network.load_state_dict(tensors, assign=True)
        return network


def _load(model: Any) -> None:
    management = importlib.import_module("comfy.model_management")
    management.load_models_gpu([model, *model.get_additional_models()])


def _nothing() -> None:
    pass


def _compiled(model: Any, compiler: str) -> Any:
    clone = model.clone()
    importlib.import_module("comfy_api.torch_helpers").set_torch_compile_wrapper(model=clone, backend=compiler)
    return clone
