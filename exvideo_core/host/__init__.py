"""The seam: everything the core needs of ComfyUI, and the only module of the core that imports it."""

from .checkpoint import load_svd
from .decoder import frame_decoder
from .files import (
    MODEL_FOLDER,
    graph_metadata,
    input_folder,
    model_names,
    model_path,
    output_destination,
    progress,
    register_model_folder,
    require_version,
    run_folder,
)
from .learning import Denoiser, Encoder, trainable
from .patch import apply_extension, base_weights, require_svd
from .post_tune import CURVE, post_tune
from .running import encode_clip, encode_frames, sample_euler

__all__ = [
    "CURVE",
    "MODEL_FOLDER",
    "Denoiser",
    "Encoder",
    "apply_extension",
    "base_weights",
    "encode_clip",
    "encode_frames",
    "frame_decoder",
    "graph_metadata",
    "input_folder",
    "load_svd",
    "model_names",
    "model_path",
    "output_destination",
    "post_tune",
    "progress",
    "register_model_folder",
    "require_svd",
    "require_version",
    "run_folder",
    "sample_euler",
    "trainable",
]
