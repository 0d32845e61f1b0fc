"""Colours and geometry of one decoded picture: flattened, resized, turned upright, brought to sRGB."""

from functools import lru_cache
from io import BytesIO
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageCms

Box = tuple[float, float, float, float]
Resize = Literal["squash", "crop", "pad"]
Interpolation = Literal["bilinear", "bicubic"]

_PILLOW_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
# Above this many pixels the two copies that the fast resizer needs cost more memory than its speed is worth.
_FAST_PIXELS = 2**24

# EXIF orientation to the turn that puts the picture upright.
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SIDEWAYS = (TURNS[5], TURNS[6], TURNS[7], TURNS[8])  # these swap width and height


def _fast_resizer() -> Any:
    """Pillow's own resize takes as long as decoding a small photo; this one a sixth of that."""
    try:
        import cykooz_resizer  # type: ignore[import-not-found, import-untyped, unused-ignore]
    except ImportError:
        return None  # no wheel for this platform: slower, the same picture to 50 dB
    return cykooz_resizer


fast = _fast_resizer()


def flatten(picture: Image.Image, background: tuple[int, ...]) -> Image.Image:
    """To 8 bits a channel, one of L, RGB and CMYK, with transparent parts showing `background`."""
    if picture.mode.startswith(("I", "F")):
        return _to_eight_bits(picture)
    if picture.has_transparency_data:
        canvas = Image.new("RGBA", picture.size, background)
        canvas.alpha_composite(picture.convert("RGBA"))
        return canvas.convert("RGB")
    if picture.mode in ("L", "RGB", "CMYK"):
        return picture
    return picture.convert("L" if picture.mode == "1" else "RGB")


def _to_eight_bits(picture: Image.Image) -> Image.Image:
    """Scale wide greys. 32-bit files do not state their range: take the smallest usual one that holds them."""
    values = np.nan_to_num(np.asarray(picture).astype(np.float32), copy=False, posinf=0, neginf=0)  # [H, W]
    largest = float(values.max())
    ranges = {"F": (1, 255, 65535), "I": (255, 65535)}.get(picture.mode, (65535,))
    white = next((top for top in ranges if largest <= top), largest)
    values *= 255 / white
    return Image.fromarray(values.round(out=values).clip(0, 255, out=values).astype(np.uint8))


def placement(size: tuple[int, int], side: int, resize: Resize) -> tuple[tuple[int, int], Box]:
    """The size to scale to, and the part of a `size` picture to take, for a square of `side`."""
    width, height = size
    if resize == "squash":
        return (side, side), (0, 0, width, height)
    if resize == "crop":
        short = min(size)
        left, top = (width - short) / 2, (height - short) / 2
        return (side, side), (left, top, left + short, top + short)
    scale = side / max(size)
    return (max(1, round(width * scale)), max(1, round(height * scale))), (0, 0, width, height)


def scale_to(picture: Image.Image, size: tuple[int, int], box: Box, interpolation: Interpolation) -> Image.Image:
    """Antialiased resize of the part `box` of an L, RGB or CMYK picture."""
    if picture.size == size and list(box) == [0, 0, *size]:
        return picture
    if fast is None or picture.width * picture.height > _FAST_PIXELS:
        return picture.resize(size, _PILLOW_FILTERS[interpolation], box=box, reducing_gap=3.0)
    kernel = fast.FilterType.bilinear if interpolation == "bilinear" else fast.FilterType.catmull_rom
    left, top, right, bottom = box
    options = fast.ResizeOptions(
        resize_alg=fast.ResizeAlg.convolution(kernel),
        use_alpha=False,  # the fourth channel of CMYK is ink
        crop_box=fast.CropBox(left, top, right - left, bottom - top),
    )
    kind = {"L": fast.PixelType.U8, "RGB": fast.PixelType.U8x3, "CMYK": fast.PixelType.U8x4}[picture.mode]
    # By way of bytes: its door for Pillow's own objects reads their private memory layout.
    scaled = fast.ImageData(*size, kind)
    fast.Resizer().resize(fast.ImageData(*picture.size, kind, picture.tobytes()), scaled, options)
    return Image.frombytes(picture.mode, size, scaled.get_buffer())


def to_srgb(picture: Image.Image, profile: bytes | None) -> Image.Image:
    """To RGB by the colour profile that came with the picture; one that does not fit is ignored, as viewers do."""
    transform = _transform_to_srgb(profile, picture.mode) if profile else None
    return transform.apply(picture) if transform else picture.convert("RGB")


@lru_cache(maxsize=8)  # building one takes three times as long as applying it, and cameras repeat their profiles
def _transform_to_srgb(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """None where the colours are sRGB already, or the profile is for another kind of picture."""
    try:
        source = ImageCms.ImageCmsProfile(BytesIO(profile))
        if "sRGB" in ImageCms.getProfileDescription(source):
            return None
        # Without the one-pixel cache, which threads that share the transform would share.
        return ImageCms.buildTransform(
            source, ImageCms.createProfile("sRGB"), mode, "RGB", flags=ImageCms.Flags.NOCACHE
        )
    except (ImageCms.PyCMSError, OSError):
        return None


def turned(picture: Image.Image, turn: Image.Transpose | None) -> Image.Image:
    return picture if turn is None else picture.transpose(turn)


def padded(picture: Image.Image, side: int | None, background: tuple[int, ...]) -> Image.Image:
    """In the middle of a square of `side`, where there is one and it is larger."""
    if side is None or picture.size == (side, side):
        return picture
    square = Image.new("RGB", (side, side), background)
    square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return square
