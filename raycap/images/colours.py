"""Converts the colours of a file to sRGB."""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO

import numpy as np
from PIL import Image, ImageCms

# Profiles of cameras and editors have some kilobytes, those of printers up to three megabytes.
_LARGEST_PROFILE = 4 * 2**20
_CURVE_POINTS = 4096

# x and y of white, red, green and blue, by their numbers in ITU-T H.273 (in cICP and AVIF).
_D65, _C, _DCI = (0.3127, 0.3290), (0.310, 0.316), (0.314, 0.351)
PRIMARIES: dict[int, tuple[float, ...]] = {
    1: (*_D65, 0.640, 0.330, 0.300, 0.600, 0.150, 0.060),  # BT.709, sRGB
    4: (*_C, 0.670, 0.330, 0.210, 0.710, 0.140, 0.080),  # BT.470 M
    5: (*_D65, 0.640, 0.330, 0.290, 0.600, 0.150, 0.060),  # BT.601, 625 lines
    6: (*_D65, 0.630, 0.340, 0.310, 0.595, 0.155, 0.070),  # BT.601, 525 lines
    7: (*_D65, 0.630, 0.340, 0.310, 0.595, 0.155, 0.070),  # SMPTE 240M
    8: (*_C, 0.681, 0.319, 0.243, 0.692, 0.145, 0.049),  # film
    9: (*_D65, 0.708, 0.292, 0.170, 0.797, 0.131, 0.046),  # BT.2020
    11: (*_DCI, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060),  # DCI P3
    12: (*_D65, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060),  # Display P3
    22: (*_D65, 0.630, 0.340, 0.295, 0.605, 0.155, 0.077),  # EBU 3213
}
_BRADFORD = np.array(
    [[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]]
)
_D50 = np.array([0.9642, 1.0, 0.8249])
# In HDR photos white paper has 203 of the 10,000 or 1,000 candelas of the curve (ITU-R BT.2408).
_PAPER = 203.0


@dataclass(frozen=True)
class Colours:
    """The colours of a file. Without a profile or a gamma they are sRGB, as in browsers."""

    profile: bytes | None = None
    gamma: float | None = None
    """the exponent in PNG's gAMA: levels are light to this power"""


def to_srgb(picture: Image.Image, colours: Colours) -> Image.Image:
    """An L, RGB or CMYK picture in RGB. A profile that does not fit is ignored, as in browsers."""
    if colours.profile and len(colours.profile) <= _LARGEST_PROFILE:
        build = _small_transform if len(colours.profile) <= 2**16 else _large_transform
        transform = build(colours.profile, picture.mode)
        if transform:
            mode, apply = transform
            return apply.apply(picture.convert(mode))
    elif colours.gamma:
        return _brightened(picture.convert("RGB"), colours.gamma)
    # `convert` would copy it.
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def stays_as_it_is(colours: Colours) -> bool:
    """Whether `to_srgb` changes nothing in an RGB picture with these colours."""
    if colours.profile and len(colours.profile) <= _LARGEST_PROFILE:
        build = _small_transform if len(colours.profile) <= 2**16 else _large_transform
        return build(colours.profile, "RGB") is None
    return not colours.gamma


def _brightened(picture: Image.Image, gamma: float) -> Image.Image:
    """Correct the gamma for 2.2, unless it differs by less than 5%: libpng does so in browsers."""
    exponent = 1 / (gamma * 2.2)
    if abs(gamma * 2.2 - 1) < 0.05:
        return picture
    table = [round(255 * (level / 255) ** exponent) for level in range(256)]
    return picture.point(table * 3)


Transform = tuple[str, ImageCms.ImageCmsTransform]


def _build_transform(profile: bytes, mode: str) -> Transform | None:
    """The mode for the picture, and the transform. None if the profile does not fit or changes
    nothing."""
    try:
        source = ImageCms.ImageCmsProfile(BytesIO(profile))
        space = source.profile.xcolor_space.strip()
        if mode == "L" and space == "RGB":
            mode = "RGB"
        # Without the one-pixel cache, which is not safe for threads that share the transform.
        transform = ImageCms.buildTransform(
            source, ImageCms.createProfile("sRGB"), mode, "RGB", flags=ImageCms.Flags.NOCACHE
        )
        return (mode, transform) if _changes(transform, mode) else None
    except (ImageCms.PyCMSError, OSError):
        return None


# Building a transform takes three times as long as applying it, and cameras repeat their profiles.
# Two caches bound the bytes too, because profiles come from untrusted files.
_small_transform = lru_cache(maxsize=32)(_build_transform)
_large_transform = lru_cache(maxsize=2)(_build_transform)


def _changes(transform: ImageCms.ImageCmsTransform, mode: str) -> bool:
    """Whether it changes any of some test colours by more than one level. A profile's name proves
    nothing: linear variants of sRGB are called sRGB too."""
    if mode == "CMYK":
        return True
    steps = np.arange(0, 256, 15, dtype=np.uint8)
    grid = np.stack(np.meshgrid(steps, steps, steps), -1).reshape(1, -1, 3)
    greys = np.repeat(np.arange(256, dtype=np.uint8), 3).reshape(1, -1, 3)
    colours = greys if mode == "L" else np.concatenate([grid, greys], 1)
    picture = Image.fromarray(np.ascontiguousarray(colours[:, :, 0] if mode == "L" else colours))
    change = np.asarray(transform.apply(picture)).astype(int) - colours
    return bool(np.abs(change).max() > 1)


@lru_cache(maxsize=32)
def coded_profile(primaries: int, transfer: int, full_range: bool = True) -> bytes | None:
    """An ICC profile for numbers of ITU-T H.273; None if they are unknown."""
    curve = _transfer_curve(transfer, np.linspace(0, 1, _CURVE_POINTS))
    if primaries not in PRIMARIES or curve is None:
        return None
    if not full_range:  # black is level 16 and white 235
        levels = (np.linspace(0, 1, _CURVE_POINTS) * 255 - 16) / 219
        curve = _transfer_curve(transfer, levels.clip(0, 1))
        assert curve is not None
    return matrix_profile(PRIMARIES[primaries], curve)


def _transfer_curve(transfer: int, level: np.ndarray) -> np.ndarray | None:
    """The light of each level. HDR light above white is clipped to white."""
    if transfer in (1, 6, 13, 14, 15):  # browsers use the curve of sRGB for BT.709 and the like
        curve = ((level + 0.055) / 1.055) ** 2.4
        light: np.ndarray = np.where(level <= 0.04045, level / 12.92, curve)
        return light
    if transfer in (4, 5):
        return level ** (2.2 if transfer == 4 else 2.8)
    if transfer == 8:
        return level
    if transfer == 16:  # PQ
        power = level ** (1 / 78.84375)
        ratio = np.maximum(power - 0.8359375, 0) / (18.8515625 - 18.6875 * power)
        return (ratio ** (1 / 0.1593017578125) * 10000 / _PAPER).clip(0, 1)
    if transfer == 18:  # HLG, on a screen of 1,000 candelas
        dark, bright = level**2 / 3, (np.exp((level - 0.55991073) / 0.17883277) + 0.28466892) / 12
        return (np.where(level <= 0.5, dark, bright) ** 1.2 * 1000 / _PAPER).clip(0, 1)
    return None


def gamma_profile(chromaticity: Sequence[float], gamma: float) -> bytes | None:
    """An ICC profile for PNG's cHRM and gAMA."""
    return matrix_profile(chromaticity, np.linspace(0, 1, _CURVE_POINTS) ** (1 / gamma))


def matrix_profile(chromaticity: Sequence[float], curve: np.ndarray) -> bytes | None:
    """A minimal ICC profile of version 2; None if the chromaticities span no colours."""
    x, y = np.array(chromaticity, float).reshape(4, 2).T
    if (y <= 0).any():
        return None
    white, *rest = np.stack([x / y, np.ones(4), (1 - x - y) / y], 1)
    try:
        primaries = np.stack(rest, 1)
        # Scaled so that all three together are white.
        primaries = primaries * np.linalg.solve(primaries, white)
        gains = np.diag((_BRADFORD @ _D50) / (_BRADFORD @ white))
        adapt = np.linalg.inv(_BRADFORD) @ gains @ _BRADFORD
    except np.linalg.LinAlgError:
        return None
    columns = (adapt @ primaries).T
    if not np.isfinite(columns).all() or np.abs(columns).max() > 100:
        return None
    points = (curve * 65535).round().astype(">u2").tobytes()
    curve_tag = b"curv\0\0\0\0" + struct.pack(">I", len(curve)) + points
    tags = {b"wtpt": _xyz(_D50)}
    for name, column in zip((b"rXYZ", b"gXYZ", b"bXYZ"), columns, strict=True):
        tags[name] = _xyz(column)
    tags |= dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve_tag)
    table, body = struct.pack(">I", len(tags)), b""
    for name, content in tags.items():
        table += name + struct.pack(">II", 132 + 12 * len(tags) + len(body), len(content))
        body += content
    head = bytes(4) + b"\2\x40\0\0mntrRGB XYZ " + bytes(12) + b"acsp" + bytes(28)
    head += _xyz(_D50)[8:] + bytes(48)
    return struct.pack(">I", 128 + len(table + body)) + head + table + body


def _xyz(values: np.ndarray) -> bytes:
    return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(float(value) * 65536) for value in values))
