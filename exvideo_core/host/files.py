"""The host's folders, and what it shows while it works."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import comfy.model_management
import comfy.utils
import folder_paths
import torch
from comfy.cli_args import args as host_arguments

from ..files import Claim, claimed, save_tensors, whole_or_nothing
from ..names import file_prefix
from ..types import ExVideoError

MODEL_FOLDER = "exvideo"
ENDINGS = (".safetensors", ".sft")
OLDER_FOLDERS = ("diffsynth/ExVideo-SVD-128f-v1", "stable_video_diffusion")
"""Where the ExVideo packs before this one had users put the same file."""
CACHE, RUNS = "post_tuning_cache", "runs"
"""What lies among the runs of post-tuning: their encoded clips, and the long sampler's runs."""

log = logging.getLogger(__name__)
throw_if_interrupted = comfy.model_management.throw_exception_if_processing_interrupted


def register_model_folder() -> None:
    """Add `models/exvideo` to the host's model folders, with what was saved and the older packs' folders."""
    folder = Path(folder_paths.models_dir, MODEL_FOLDER)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        log.warning(
            "ExVideo could not create %s (%s): put extensions into a folder of extra_model_paths.", folder, error
        )
    for path in (folder, *(Path(folder_paths.models_dir, name) for name in OLDER_FOLDERS)):
        if path.is_dir():
            folder_paths.add_model_folder_path(MODEL_FOLDER, str(path))
    # As the host does with its own kinds of models; the folder is made by the first file that is saved.
    folder_paths.add_model_folder_path(MODEL_FOLDER, str(Path(folder_paths.get_output_directory(), MODEL_FOLDER)))
    # The host gives a new folder an empty set of file types, which would list nothing, or everything.
    paths, _ = folder_paths.folder_names_and_paths.get(MODEL_FOLDER, ([str(folder)], set()))
    folder_paths.folder_names_and_paths[MODEL_FOLDER] = (paths, set(ENDINGS))


def model_names(folder: str) -> list[str]:
    """The files in a model folder of the host, by their names from there."""
    try:
        return folder_paths.get_filename_list(folder)
    except FileNotFoundError:
        # The host looks at folders that it remembers; one in the output folder may have been tidied away.
        folder_paths.filename_list_cache.pop(folder, None)
        return folder_paths.get_filename_list(folder)


def model_path(folder: str, name: str) -> Path:
    path = folder_paths.get_full_path(folder, name)
    if path is None:
        raise ExVideoError(
            f"There is no {name} in ComfyUI's {folder} folder: choose another file, or refresh the page."
        )
    return Path(path)


def model_fingerprint(folder: str, name: str | None) -> list[int]:
    """What differs when a model's file was written again under its name; nothing where there is no such file."""
    if name is None:  # from another node, not known yet
        return []
    try:
        stat = model_path(folder, name).stat()
    except (ExVideoError, OSError):
        return []
    return [stat.st_mtime_ns, stat.st_size]


class Destination(NamedTuple):
    """Where a file goes: what to write to, and its name and subfolder as the host's page and history tell it."""

    partial: Path
    name: str
    subfolder: str

    @property
    def path(self) -> Path:
        """Where it is when it is whole."""
        return self.partial.with_name(self.name)


@contextmanager
def output_file(
    prefix: str, suffix: str, width: int = 0, height: int = 0, prompt: Mapping[str, Any] | None = None
) -> Iterator[Destination]:
    """The next free numbered name in the output folder, by the host's naming, which may hold width and height, and
    with `names.file_prefix`'s patterns.

    What was written is there under that name when this ends, and not before; when it ends by an exception, nothing is.

    Raises:
        ExVideoError: a prefix that leads out of the output folder, or cannot be a file's name, or a folder that
            cannot be written to.
    """
    output = folder_paths.get_output_directory()
    try:
        folder, stem, counter, subfolder, _ = folder_paths.get_save_image_path(
            file_prefix(prefix, prompt), output, width, height
        )
    except ExVideoError:
        raise
    except OSError as error:  # the host makes the subfolder
        raise ExVideoError(
            f"Nothing can be saved in {output} ({error}): make it writable, or choose another name."
        ) from error
    except Exception as error:  # of several kinds, by the host's version
        raise ExVideoError(
            f"Nothing can be saved as {prefix!r} ({_first_line(error)}): choose a name within ComfyUI's output folder, "
            "such as video/ExVideo."
        ) from error
    with claimed(Path(folder), stem, counter, suffix) as claim, _told_of(claim):
        yield Destination(claim.partial, claim.path.name, subfolder)


@contextmanager
def _told_of(claim: Claim) -> Iterator[None]:
    """Errors tell the name that a person knows, not the hidden one that is written to."""
    try:
        yield
    except ExVideoError as error:
        raise ExVideoError(str(error).replace(claim.partial.name, claim.path.name)) from error


def preview_file(of: Destination, write: Callable[[Path], None]) -> Path | None:
    """An MP4 for the page alone, in the host's temporary folder, which it empties when it starts.

    Returns:
        The file; None where none could be made, which the log tells: what was saved is not to be lost by it.
    """
    # Short, whatever the name, and of files of one name in several subfolders each has its own.
    name = hashlib.sha256(f"{of.subfolder}/{of.name}".encode(errors="replace")).hexdigest()[:16]
    preview = Path(folder_paths.get_temp_directory(), f"exvideo_{name}.mp4")
    try:
        preview.parent.mkdir(parents=True, exist_ok=True)
        with whole_or_nothing(preview) as partial:
            write(partial)
    except (OSError, ExVideoError) as error:
        log.warning("ExVideo saved %s, but could not make a preview of it for the node: %s", of.name, error)
        return None
    return preview


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def save_latents(
    latents: torch.Tensor, beside: Destination, prompt: Any, extra_pnginfo: Mapping[str, Any] | None
) -> str:
    """Keep latents in a file that the host's Load Latent reads, under the name and number of the one beside it.

    Returns:
        Its name.
    """
    stem, number, _ = beside.name.rsplit("_", 2)
    with claimed(beside.partial.parent, stem, int(number), ".latent") as claim, _told_of(claim):
        # The second tensor says that the numbers are as samplers leave them.
        tensors = {"latent_tensor": latents, "latent_format_version_0": torch.tensor([])}
        save_tensors(claim.partial, tensors, graph_metadata(prompt, extra_pnginfo))
    log.info("ExVideo keeps the latents in %s.", claim.path)
    return claim.path.name


def input_folder(name: str) -> Path:
    """A folder by its full path, or by its name in the host's input folder."""
    folder = Path(name)
    with suppress(RuntimeError):  # of a user whom the system does not know; then no such folder is found
        folder = folder.expanduser()
    return Path(folder_paths.get_input_directory(), folder)


def run_folder(name: str) -> tuple[Path, str]:
    """The folder of a training in the output folder, among what is listed as extensions, and its subfolder there.

    Raises:
        ExVideoError: a name that leads out of there, that no folder can have, or that is of a folder for other things.
    """
    # Which may itself be a link, to a larger disk, say.
    runs = Path(folder_paths.get_output_directory(), MODEL_FOLDER).resolve()
    folder = folder_in(runs, name)
    if runs not in folder.parents:
        raise ExVideoError(
            f"A run is kept in a folder of its own in output/{MODEL_FOLDER}, and {name!r} does not name one: choose a "
            "name such as post_tuning."
        )
    inside = folder.relative_to(runs)
    # The clips of a run lie beside it, so of a run in a folder of the person's own they lie there.
    first, *others = (part.lower() for part in inside.parts)
    if first == RUNS or CACHE in (first, *others):
        kept = "the encoded clips of all runs, which may be deleted" if first != RUNS else "the Long Sampler's runs"
        raise ExVideoError(
            f"A run is kept in a folder of its own, and output/{MODEL_FOLDER}/{inside.as_posix()} is for {kept}: "
            "choose another name, such as post_tuning."
        )
    return folder, Path(MODEL_FOLDER, inside).as_posix()


def folder_in(parent: Path, name: str) -> Path:
    """A folder by its name; the parent itself where that leads out of it, or the system has no such names."""
    try:
        name.encode()  # as the page and other programs are told it
        folder = (parent / name).resolve()
        # Each part for itself: of one that is in a folder yet to be made, the system says no more than that.
        there = next(place for place in (parent, *parent.parents) if place.exists())
        for part in folder.relative_to(parent).parts:
            with suppress(FileNotFoundError):
                (there / part).lstat()
        return folder
    except (OSError, ValueError, RuntimeError):
        return parent


def graph_metadata(prompt: Any, extra_pnginfo: Mapping[str, Any] | None) -> dict[str, str]:
    """What a file says of the graph that made it; empty where the user started ComfyUI with --disable-metadata."""
    if host_arguments.disable_metadata:
        return {}
    texts = {} if prompt is None else {"prompt": prompt}
    return {key: _strict_json(value) for key, value in {**texts, **(extra_pnginfo or {})}.items()}


def _strict_json(value: Any) -> str:
    """Without NaN, which the host writes down of nodes that are to run each time, and which the page cannot read."""
    return json.dumps(json.loads(json.dumps(value), parse_constant=lambda _: None))


def interruptible(*_: Any) -> None:
    """For loops whose progress shows elsewhere: each call may be interrupted."""
    throw_if_interrupted()


def progress() -> Callable[..., None]:
    """A progress bar at the node: call it with how much is done, and of how much. Each call may be interrupted.

    A third argument is a picture (PIL) for the node to show meanwhile.
    """
    bar = comfy.utils.ProgressBar(1)

    def update(done: int, total: int, picture: Any = None) -> None:
        throw_if_interrupted()
        bar.update_absolute(done, total, None if picture is None else ("JPEG", picture, max(picture.size)))

    return update
