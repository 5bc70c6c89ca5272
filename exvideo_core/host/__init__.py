"""The seam: everything the core needs of ComfyUI, and the only module of the core that imports it."""

from .checkpoint import load_svd
from .decoder import frame_decoder
from .files import (
    MODEL_FOLDER,
    graph_metadata,
    model_names,
    model_path,
    output_destination,
    progress,
    register_model_folder,
    require_version,
)
from .patch import apply_extension, base_weights, require_svd
from .running import encode_clip, encode_frames, sample_euler

__all__ = [
    "MODEL_FOLDER",
    "apply_extension",
    "base_weights",
    "encode_clip",
    "encode_frames",
    "frame_decoder",
    "graph_metadata",
    "load_svd",
    "model_names",
    "model_path",
    "output_destination",
    "progress",
    "register_model_folder",
    "require_svd",
    "require_version",
    "sample_euler",
]
