"""The pixels that the processor of a family would make, so that decode workers can make them.

Then the processor only scales and normalises numbers in the model's process. Where its way to
resize is not known here, it does all of that itself, with pictures of at most 4 megapixels.
"""

from typing import Any

from raycap.images.intake import LONGEST_SIDE, Fit, Intake, Square
from raycap.images.pixels import Kernel

# The filters of processors, by their numbers in Pillow.
_KERNELS: dict[int, Kernel] = {1: "lanczos", 2: "bilinear", 3: "bicubic"}
_ANY_SIZE = 4 * 2**20

_OF_QWEN = ("Qwen2VLImageProcessor",)
_OF_IDEFICS3 = ("Idefics3ImageProcessor", "SmolVLMImageProcessor")
_OF_INTERNVL = ("GotOcr2ImageProcessor",)
# Processors with these switched on make more of a picture than one square.
_MORE_THAN_A_SQUARE = (
    "do_image_splitting",
    "do_pan_and_scan",
    "crop_to_patches",
    "image_grid_pinpoints",
    "do_pad",
)


def intake_of(processor: Any, max_pixels: int) -> tuple[Intake, bool]:
    """What the decode workers make, and whether it is all that the processor would make.

    `max_pixels` limits it if the model takes more than one size; 0 for no limit.
    """
    images = getattr(processor, "image_processor", processor)
    name = (
        type(images).__name__.removesuffix("Fast").replace("ImageProcessorPil", "ImageProcessor")
    )
    kernel = _KERNELS.get(int(getattr(images, "resample", None) or 0))
    size = _sides(getattr(images, "size", None))
    found: Intake | None = None
    if not getattr(images, "do_resize", False) or kernel is None:
        found = None
    elif name in _OF_QWEN:
        found = _of_qwen(images, size, kernel, max_pixels)
    elif name in _OF_IDEFICS3:
        found = _of_idefics3(images, size, kernel, max_pixels)
    elif name in _OF_INTERNVL and size.get("height") == size.get("width"):
        tile, tiles = size["height"], 1
        if _is_tiled(processor, images):
            tiles = images.max_patches
            if max_pixels:
                tiles = max(images.min_patches, min(tiles, max_pixels // tile**2))
        least = min(images.min_patches, tiles) if tiles > 1 else 1
        found = Fit(multiple_of=tile, max_tiles=tiles, min_tiles=least, interpolation=kernel)
    elif not any(getattr(images, switch, None) for switch in _MORE_THAN_A_SQUARE):
        found = _square(images, size, kernel)
    if found is not None:
        return found, True
    return Fit(max_pixels=max_pixels or _ANY_SIZE), False


def _of_qwen(images: Any, size: dict[str, int], kernel: Kernel, max_pixels: int) -> Fit | None:
    step = images.patch_size * images.merge_size
    least, most = size.get("shortest_edge", 0), size.get("longest_edge", 0)
    if not most:
        return None
    if max_pixels:
        most = max(step * step, min(most, max_pixels))
    return Fit(
        multiple_of=step, min_pixels=min(least, most), max_pixels=most, interpolation=kernel
    )


def _of_idefics3(images: Any, size: dict[str, int], kernel: Kernel, max_pixels: int) -> Fit | None:
    tile = _sides(images.max_image_size).get("longest_edge", 0)
    longest = size.get("longest_edge", 0)
    if not tile or not longest:
        return None
    if not images.do_image_splitting:
        return Fit(multiple_of=tile, max_tiles=1, interpolation=kernel)
    if max_pixels:
        longest = min(longest, max(tile, int(max_pixels**0.5)))
    return Fit(multiple_of=tile, longest_side=longest, interpolation=kernel)


def _is_tiled(processor: Any, images: Any) -> bool:
    of_images = getattr(processor, "images_kwargs", None)  # what the processor passes to it
    default = images.crop_to_patches
    return bool(
        of_images.get("crop_to_patches", default) if isinstance(of_images, dict) else default
    )


def _square(images: Any, size: dict[str, int], kernel: Kernel) -> Intake | None:
    crop = _sides(getattr(images, "crop_size", None)) if _crops(images) else {}
    if crop:
        side = crop.get("height", 0)
        is_middle = size.get("shortest_edge") == side == crop.get("width")
        whole = size.get("height") == side == size.get("width") == crop.get("width")
        how = "crop" if is_middle else "squash" if whole else ""
    else:
        side = size.get("height", 0)
        how = "squash" if side == size.get("width") else ""
    if not how or not 1 <= side <= LONGEST_SIDE:
        return None
    if kernel == "lanczos":  # a square of one tile
        is_squash = how == "squash"
        return Fit(multiple_of=side, max_tiles=1, interpolation=kernel) if is_squash else None
    return Square(side, "crop" if how == "crop" else "squash", kernel)


def _crops(images: Any) -> bool:
    return bool(getattr(images, "do_center_crop", False))


def _sides(size: Any) -> dict[str, int]:
    """A processor's size as a mapping of the names that it has."""
    if size is None:
        return {}
    return {name: int(side) for name, side in dict(size).items() if side is not None}
