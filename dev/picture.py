"""Any picture a person may have, as the plain 8-bit RGB PNG that every host reads alike."""

from __future__ import annotations

import warnings
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from dev.errors import DevError

LONGEST_SIDE = 2048
# Modes with more than 8 bits a pixel. Converting them as they are would clip all but the darkest values.
DEEP_MODES = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")


class PictureError(DevError):
    """The file is no picture that can be read."""


def write_clean_copy(source: Path, destination: Path) -> tuple[int, int]:
    """Write `source` as an upright RGB PNG without metadata, its longer side at most 2048; returns its size."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # large, but it will be shrunk
            with Image.open(source) as picture:
                clean = _clean(picture)
    except Image.DecompressionBombError as error:
        raise PictureError(f"{source} has too many pixels to be opened safely: shrink it first ({error}).") from error
    except UnidentifiedImageError as error:
        raise PictureError(f"{source} should be a picture (PNG, JPEG, WebP, …), it is none: choose another.") from error
    except (OSError, SyntaxError, ValueError) as error:  # Pillow's ways of meeting damaged data
        raise PictureError(f"{source} cannot be read as a picture ({error}): choose another file.") from error
    clean.save(destination, "PNG")
    return clean.size


def _clean(picture: Image.Image) -> Image.Image:
    picture.draft("RGB", (LONGEST_SIDE, LONGEST_SIDE))  # lets a huge JPEG be decoded small; nothing for other formats
    upright = ImageOps.exif_transpose(picture)
    rgb = _to_rgb(upright)
    rgb.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS)
    # A new canvas, because the old one brings its metadata along into the PNG.
    clean = Image.new("RGB", rgb.size)
    clean.paste(rgb)
    return clean


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode in DEEP_MODES:
        return _to_8_bits(picture).convert("RGB")
    if picture.has_transparency_data:
        layer = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return picture.convert("RGB")


def _to_8_bits(picture: Image.Image) -> Image.Image:
    """Scale deep greyscale to 0…255: from the 16-bit range, or from its own where the values are on another scale."""
    deep = picture.convert("F")
    _, high = deep.getextrema()
    assert isinstance(high, float)  # there is one channel, so one pair
    if picture.mode == "F":
        white = next((scale for scale in (1.0, 255.0, 65535.0) if high <= scale), high)
    else:
        white = max(65535.0, high)
    # convert() truncates: half a step makes that a rounding.
    return deep.point(lambda value: value * (255.0 / white) + 0.5).convert("L")
