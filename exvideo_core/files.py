"""Files that are read and written whole. Models: .safetensors alone, since pickled ones can run code when opened."""

from __future__ import annotations

import codecs
import hashlib
import itertools
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import torch
from safetensors.torch import save_file

from .types import ExVideoError

Shapes = Mapping[str, tuple[int, ...]]

_PICKLED = "a pickled PyTorch checkpoint (.ckpt, .pt, .pth), which can run code when it is opened"
_BEGINNINGS: Mapping[bytes, str] = {
    b"PK\x03\x04": _PICKLED,
    **dict.fromkeys((b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"), _PICKLED),
    b"GGUF": "a GGUF file",
    b"version https://git-lfs": "a Git LFS pointer, a few lines that stand for the file",
    b"<": "a web page, as downloads leave behind that needed a login",
}
"""How files of other kinds begin, and what they are."""

_MARKS: Mapping[str, str] = {
    "lora": "a LoRA",
    "positional_conv.": "an ExVideo extension",
    "model.diffusion_model.input_blocks.1.1.time_stack.": "a Stable Video Diffusion checkpoint",
    "temporal_transformer_blocks.": "the UNet of Stable Video Diffusion in diffusers' format",
    "conditioner.embedders.1.": "a Stable Diffusion XL checkpoint",
    "cond_stage_model.": "a Stable Diffusion checkpoint",
    "model.diffusion_model.": "a checkpoint of another model",
    "double_blocks.": "another diffusion model (Flux, Hunyuan)",
    "blocks.0.self_attn.": "another diffusion model (Wan)",
    "down_blocks.": "a diffusers model",
    "first_stage_model.": "an autoencoder",
    "decoder.": "an autoencoder",
    "vision_model.": "a CLIP image encoder",
}
"""What models of other kinds have in their tensors' names; the first that fits tells."""

_PARTIAL = re.compile(r"\.([0-9a-f]{16}\.\d+|.+_\d{5,}_(\.\w+)?)\.part")
"""What half-written files and folders are called: hidden, and as no program calls its models or pictures."""
_ABANDONED = 24 * 60 * 60
"""Seconds after which nobody goes on writing to one, so that a process that was killed left it. Its number would not
tell: numbers come again, and other machines may write to the same folder."""
_MIB = 1 << 20
_PATIENCE = 2.0
"""Seconds in which others may let go of what is to be renamed."""


@contextmanager
def open_tensors(path: str | Path, advice: str) -> Iterator[tuple[Any, Shapes]]:
    """Open a file, memory-mapped: its handle, and the shape of every tensor in it.

    Args:
        path: the file.
        advice: what the person should do where it cannot be read.

    Raises:
        ExVideoError: the file is cut short, or something else; says what it looks like.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            names = list(file.keys())
            yield file, {name: tuple(file.get_slice(name).get_shape()) for name in names}
    except (safetensors.SafetensorError, OSError) as error:
        raise ExVideoError(
            f"{Path(path).name} should be a .safetensors file, but {_what_it_is(Path(path), error)}. {advice}"
        ) from error


def save_tensors(
    path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str], tidy: bool = True
) -> None:
    """Write a .safetensors file that appears under its name only when it is whole; `tidy` as in `whole_or_nothing`.

    Raises:
        ExVideoError: it cannot be written, for want of space or permission, say.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_or_nothing(path, tidy) as partial:
            partial.touch()
            usual = partial.stat().st_mode
            save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, partial, dict(metadata))
            # Newer safetensors make files that only their owner may read.
            partial.chmod(usual)
    except (safetensors.SafetensorError, OSError) as error:
        raise ExVideoError(
            f"{path.name} could not be written ({error}): free some space, or choose another folder."
        ) from error


def fingerprint(tensors: Mapping[str, torch.Tensor]) -> str:
    """A text that differs between tensors of other names, shapes or values, from a few numbers of each."""
    digest = hashlib.sha256()
    for key, tensor in sorted(tensors.items()):
        values = tensor.detach().flatten()
        some = values[:: max(len(values) // 64, 1)]
        # A model's file is in float32 and may be loaded in half precision: it is the same model.
        some = (some.half() if some.dtype == torch.float32 else some).float().cpu()
        digest.update(f"{key} {tuple(tensor.shape)} {some.tolist()}".encode())
    return digest.hexdigest()[:16]


def checksum(tensor: torch.Tensor) -> str:
    """A text that differs between tensors of other values, from every one of them."""
    # As bytes, for numpy knows no bfloat16; and without a copy of them, for it may be a whole video.
    values = tensor.detach().contiguous().cpu().flatten().view(torch.uint8).numpy().data
    return hashlib.sha256(values).hexdigest()


@contextmanager
def whole_or_nothing(path: Path, tidy: bool = True) -> Iterator[Path]:
    """Give a name to write to, which becomes `path` at the end, or vanishes when anything goes wrong.

    Args:
        path: the name in the end.
        tidy: whether its folder is rid of what killed processes left half-written, for which all of it is listed.
    """
    # In the same folder, so that the rename is atomic; hidden, nobody else's, and short, whatever the name.
    own = hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]
    partial = path.with_name(f".{own}.{_nobody_elses()}.part")
    if tidy:
        remove_abandoned(path.parent)
    try:
        yield partial
        # A power cut must not leave the name without the content.
        with partial.open("rb+") as written:
            os.fsync(written.fileno())
        _rename(partial, path)
    finally:
        _remove(partial)


def require_writable(folder: Path, size: int = 1) -> None:
    """Write a hidden file into a folder and remove it: permissions alone do not tell. Of a folder that is yet to be
    made, into what it will be in.

    Args:
        folder: which.
        size: bytes that there has to be room for.

    Raises:
        OSError: nothing can be written there, or there cannot be such a folder.
    """
    with suppress(FileNotFoundError):
        folder.lstat()  # a name that the system has none of, or in what is no folder
    place = next(place for place in (folder, *folder.parents) if os.path.lexists(place))
    probe = place / f".probe.{_nobody_elses()}.part"
    try:
        with probe.open("wb") as file:  # on a full disk an empty file can still be made
            for done in range(0, size, _MIB):
                file.write(b"0" * min(_MIB, size - done))
    finally:
        _remove(probe)


def _nobody_elses() -> int:
    """Of a name. Not the process's number: on machines or in containers that share a folder, two may have the same."""
    return secrets.randbelow(10**12)


class Claim(NamedTuple):
    """A name that nobody else takes: `path` appears when what is written to `partial`, a file or a folder, is whole."""

    path: Path
    partial: Path


@contextmanager
def claimed(folder: Path, stem: str, number: int, suffix: str) -> Iterator[Claim]:
    """The first free numbered name of a folder, from `number` on, as the host numbers its files.

    What is being written has a hidden name, made from the final one, that only one of many writers can make. It
    becomes the final one at the end, or vanishes when anything goes wrong before.

    Args:
        folder: it is made where it is missing.
        stem: the beginning of the name.
        number: the least that the name may carry.
        suffix: the end of the name; where there is none, what is written is a folder.

    Raises:
        ExVideoError: the folder cannot be written to, or what is whole cannot be given its name: tells where it is.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        claim = next(claim for claim in _names(folder, stem, number, suffix) if _take(claim, folder=not suffix))
    except (OSError, ValueError) as error:
        raise ExVideoError(
            f"Nothing can be saved in {folder} ({error}): make it writable, or choose another name."
        ) from error
    # Not before, or of two writers one might remove what the other has just claimed.
    remove_abandoned(folder)
    try:
        yield claim
    except BaseException:
        _remove(claim.partial)
        raise
    try:
        _rename(claim.partial, claim.path)
    except OSError as error:
        raise ExVideoError(
            f"{claim.path.name} is whole, but cannot be given its name ({error}). It is {claim.partial}: rename it "
            "within a day."
        ) from error


def _names(folder: Path, stem: str, number: int, suffix: str) -> Iterator[Claim]:
    for name in (f"{stem}_{count:05}_{suffix}" for count in itertools.count(number)):
        yield Claim(folder / name, folder / f".{name}.part")


def _take(claim: Claim, *, folder: bool) -> bool:
    """Whether the name was free and now is ours."""
    try:
        if folder:
            claim.partial.mkdir()
        else:
            claim.partial.touch(exist_ok=False)
    except FileExistsError:
        return False
    if claim.path.exists():  # taken since the host looked
        _remove(claim.partial)
        return False
    return True


def _rename(path: Path, to: Path) -> None:
    until = time.monotonic() + _PATIENCE
    while True:
        try:
            path.replace(to)
            return
        except PermissionError:
            # On Windows, by programs that look through new files: while they read one, neither it nor its folder is
            # renamed.
            if time.monotonic() > until:
                raise
            time.sleep(_PATIENCE / 10)


def remove_abandoned(folder: Path, age: float = _ABANDONED) -> None:
    """Remove half-written files that nobody goes on with: those of so many seconds, all where nobody else writes."""
    with suppress(OSError):
        for path in folder.iterdir():
            if _PARTIAL.fullmatch(path.name) and time.time() - path.lstat().st_mtime >= age:
                _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    with suppress(OSError):
        path.unlink()


def looks_like(names: Shapes) -> str:
    """What kind of model has tensors of these names, in words."""
    if not names:
        return "a file without tensors"
    for mark, kind in _MARKS.items():
        if any(mark in name for name in names):
            return kind
    return f"another model, of {len(names)} tensors"


def _what_it_is(path: Path, error: Exception) -> str:
    try:
        with path.open("rb") as file:
            raw = file.read(64)
    except OSError:
        return f"it cannot be opened ({error})"
    beginning = raw.removeprefix(codecs.BOM_UTF8).lstrip()
    if not beginning:
        return "it is empty"
    if not any(raw):
        return "it begins with nothing but zeros: most likely its download was not finished"
    for start, kind in _BEGINNINGS.items():
        if beginning.startswith(start):
            return f"it is {kind}"
    if raw[8:9] == b"{":  # the length of the header, then the header
        return f"it is damaged, most likely cut short: {path.stat().st_size} bytes are there ({error})"
    return "it is a text file" if beginning.isascii() and b"\0" not in beginning else "it is something else"
