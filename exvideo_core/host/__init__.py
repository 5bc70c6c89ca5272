"""The seam: everything the core needs of ComfyUI, and the only module of the core that imports it."""

from .checkpoint import load_svd
from .decoder import frame_decoder
from .diagnosis import add_folders_as_at_start, diagnose
from .drifting import extension_length, has_context_windows, has_easy_cache, skips_steps, with_drifting_windows
from .files import (
    MODEL_FOLDER,
    Destination,
    graph_metadata,
    input_folder,
    interruptible,
    model_fingerprint,
    model_names,
    model_path,
    output_file,
    preview_file,
    progress,
    register_model_folder,
    run_folder,
    save_latents,
)
from .identity import encoder_identity, model_identity
from .interpolation import between_frames, interpolation_socket
from .learning import Denoiser, Encoder, trainable
from .long_runs import SamplingProgress, long_run_folder
from .patch import apply_extension, base_weights, require_svd
from .post_tune import CURVE, post_tune
from .running import encode, encode_clip, encode_frames, sample_euler
from .telling import warn

__all__ = [
    "CURVE",
    "MODEL_FOLDER",
    "Denoiser",
    "Destination",
    "Encoder",
    "SamplingProgress",
    "add_folders_as_at_start",
    "apply_extension",
    "base_weights",
    "between_frames",
    "diagnose",
    "encode",
    "encode_clip",
    "encode_frames",
    "encoder_identity",
    "extension_length",
    "frame_decoder",
    "graph_metadata",
    "has_context_windows",
    "has_easy_cache",
    "input_folder",
    "interpolation_socket",
    "interruptible",
    "load_svd",
    "long_run_folder",
    "model_fingerprint",
    "model_identity",
    "model_names",
    "model_path",
    "output_file",
    "post_tune",
    "preview_file",
    "progress",
    "register_model_folder",
    "require_svd",
    "run_folder",
    "sample_euler",
    "save_latents",
    "skips_steps",
    "trainable",
    "warn",
    "with_drifting_windows",
]
