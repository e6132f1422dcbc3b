"""Decoding of pictures with Pillow: any mode, orientation and transparency become 8-bit RGB or grey of a fixed size."""

import logging
import warnings

import numpy as np
from PIL import Image, ImageOps

from mla_cli.data.references import BadMedia, Box, Source, decoding
from mla_cli.specs import ImageSpec

MAX_IMAGE_PIXELS = 89_478_485  # Pillow's own limit for one picture (256 MiB as RGB), here an error and not a warning
STRIP_PIXELS = 2**22  # of a picture that are converted at once
IMAGE_FORMATS = ("JPEG", "PNG", "GIF", "TIFF", "BMP", "WEBP", "PPM", "AVIF", "JPEG2000", "TGA", "ICO")

logging.getLogger("PIL").setLevel(logging.CRITICAL)  # what it would print about a damaged file is raised as well


def decode_image(source: Source, spec: ImageSpec, box: Box | None = None) -> np.ndarray:
    """One picture as uint8 (channel, size, size); the first frame of an animation.

    Turned as its EXIF orientation says, laid over white where it is transparent, 16-bit values divided by 257, resized
    with Pillow's antialiased bilinear filter (`fit: squash` both sides, `crop` the largest middle square).
    """
    with decoding("the image"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's remarks on odd metadata
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(source, formats=IMAGE_FORMATS) as opened:
            if opened.width * opened.height > MAX_IMAGE_PIXELS:
                raise BadMedia("undecodable", f"the image claims {opened.width} x {opened.height} pixels")
            opened.load()
            ImageOps.exif_transpose(opened, in_place=True)
            image = _flatten(opened, "L" if spec.mode == "grey" else "RGB")
    return fit_picture(image, spec.size, spec.fit, box)


def _flatten(image: Image.Image, mode: str) -> Image.Image:
    """Any Pillow mode as 8-bit `mode`, transparency over white; strip by strip, as one takes several times its room."""
    rows = max(1, STRIP_PIXELS // image.width)
    if rows >= image.height:
        return _flatten_strip(image, mode)
    flat = Image.new(mode, image.size)
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(top + rows, image.height)))
        flat.paste(_flatten_strip(strip, mode), (0, top))
    return flat


def _flatten_strip(image: Image.Image, mode: str) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image).astype(np.float64)
        high = 1.0 if image.mode == "F" else 65535.0
        if not np.isfinite(values).all():
            raise BadMedia("not_finite", "the image holds NaN or infinity")
        if values.min() < 0 or values.max() > high:
            raise BadMedia("undecodable", f"the image's values are not within [0, {high:g}], so their range is unknown")
        image = Image.fromarray(np.rint(values * (255.0 / high)).astype(np.uint8))
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB").convert(mode)


def fit_picture(image: Image.Image, size: int, fit: str, box: Box | None) -> np.ndarray:
    """A part of an 8-bit picture, resized: uint8 (channel, size, size)."""
    left, top, right, bottom = 0, 0, image.width, image.height
    if box is not None:
        left, right = (round(image.width * p / 100) for p in (box[0], box[0] + box[2]))
        top, bottom = (round(image.height * p / 100) for p in (box[1], box[1] + box[3]))
        if right <= left or bottom <= top:
            raise BadMedia("undecodable", "the part of the picture has no pixel")
    if fit == "crop":
        side = min(right - left, bottom - top)
        left, top = left + (right - left - side) // 2, top + (bottom - top - side) // 2
        right, bottom = left + side, top + side
    resized = image.resize((size, size), Image.Resampling.BILINEAR, box=(left, top, right, bottom))
    pixels = np.asarray(resized)
    return np.ascontiguousarray(pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1))
