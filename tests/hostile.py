"""Pictures that break readers, and the expected result of each.

`python tests/hostile.py FOLDER` writes them.

Most have four coloured quadrants, which show a wrong orientation, colour or frame. Needs only
Pillow and NumPy, and makes the same bytes each time.
"""

import base64
import random
import struct
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import misread
import numpy as np
from forging import (
    GREYS,
    HEIGHT,
    LUMA,
    P3,
    QUADRANTS,
    SRGB,
    WIDTH,
    Hostile,
    chunk,
    exif_of,
    half,
    inked,
    jpeg,
    linear,
    patched,
    png,
    profile,
    quadrants,
    saved,
    segment,
    stored,
    textured,
    tiff,
    xyz,
)
from PIL import Image, ImageChops

WHITE, BLACK = (255, 255, 255), (0, 0, 0)

# A HEIC of the quadrants at 64x64, made with pillow-heif, for machines without it.
HEIC = base64.b64decode(
    "AAAAHGZ0eXBoZWljAAAAAG1pZjFoZWljbWlhZgAAAVZtZXRhAAAAAAAAACFoZGxyAAAAAAAAAABwaWN0AAAAAAAAAAAAAAAAAAAAACJpbG9jAAAA"
    "AERAAAEAAQAAAAABegABAAAAAAAAADYAAAAjaWluZgAAAAAAAQAAABVpbmZlAgAAAAABAABodmMxAAAAAA5waXRtAAAAAAABAAAA1mlwcnAAAAC3"
    "aXBjbwAAAHhodmNDAQNwAAAAkAAAAAAAHvAA/P34+AAADwNgAAEAGEABDAH//wNwAAADAJAAAAMAAAMAHroCQGEAAQArQgEBA3AAAAMAkAAAAwAA"
    "AwAeoCCBBZbqSSmubgIaDAgAAAMAyAAAAwAIQGIAAQAHRAHBcrAiQAAAABNjb2xybmNseAABAA0ABoAAAAAUaXNwZQAAAAAAAABAAAAAQAAAABBw"
    "aXhpAAAAAAMICAgAAAAXaXBtYQAAAAAAAAABAAEEgQIDBAAAAD5tZGF0AAAAMigBrxmABolHv1X//lw+/5hml7Z5O8Lzd46gP+dd6v/t9mPJG+/d"
    "3F+L+R91+5hn+EP8"
)


def hostile() -> list[Hostile]:
    """The whole table."""
    return [
        *plain(),
        *jpegs(),
        *transparent(),
        *wide(),
        *moving(),
        *profiled(),
        *strangers(),
        *cut(),
        *bombs(),
        *odd(),
        *misread.misread(),
    ]


def plain() -> Iterator[Hostile]:
    """Ordinary files of each format and mode that raycap reads."""
    picture, grey = quadrants(), quadrants(LUMA, "L")
    yield Hostile("plain.jpg", jpeg(picture), "jpeg")
    yield Hostile("progressive.jpg", jpeg(picture, progressive=True), "jpeg")
    yield Hostile("grey.jpg", jpeg(grey), "jpeg", quadrants=GREYS)
    yield Hostile("mpo.jpg", saved(picture, "MPO", save_all=True, append_images=[picture]), "jpeg")
    yield Hostile("plain.png", saved(picture, "PNG"), "png")
    yield Hostile("palette.png", saved(picture.quantize(4), "PNG"), "png")
    yield Hostile("grey.png", saved(grey, "PNG"), "png", quadrants=GREYS)
    black_and_white = quadrants([255, 0, 0, 255], "L").convert("1")
    yield Hostile(
        "bilevel.png", saved(black_and_white, "PNG"), "png", quadrants=[WHITE, BLACK, BLACK, WHITE]
    )
    yield Hostile("plain.gif", saved(picture, "GIF"), "gif")
    yield Hostile("lossy.webp", saved(picture, "WEBP", quality=95), "webp", tolerance=10)
    yield Hostile("lossless.webp", saved(picture, "WEBP", lossless=True), "webp")
    yield Hostile("plain.bmp", saved(picture, "BMP"), "bmp")
    yield Hostile("palette.bmp", saved(picture.quantize(4), "BMP"), "bmp")
    yield Hostile("plain.tif", saved(picture, "TIFF"), "tiff")
    for packing in ("tiff_lzw", "tiff_adobe_deflate", "jpeg"):
        yield Hostile(
            f"{packing}.tif", saved(picture, "TIFF", compression=packing), "tiff", tolerance=10
        )
    yield Hostile(
        "pages.tif", saved(picture, "TIFF", save_all=True, append_images=[grey.copy()]), "tiff"
    )
    yield Hostile("cmyk.tif", saved(picture.convert("CMYK"), "TIFF"), "tiff")
    yield Hostile("turned.tif", saved(stored(picture, 6), "TIFF", tiffinfo={274: 6}), "tiff")
    yield Hostile("plain.avif", saved(picture, "AVIF", quality=90), "avif")
    try:
        import pillow_heif  # noqa: F401
    except ImportError:
        yield Hostile("plain.heic", HEIC, "heif", error="a HEIC picture, which needs an extra")
    else:
        yield Hostile("plain.heic", HEIC, "heif", (64, 64))
    yield Hostile("plain.jp2", saved(picture, "JPEG2000"), "jpeg2000")
    yield Hostile("plain.ppm", saved(picture, "PPM"), "ppm")
    yield Hostile("grey.pgm", saved(grey, "PPM"), "ppm", quadrants=GREYS)


def jpegs() -> Iterator[Hostile]:
    """What cameras, scanners and print shops make of JPEG."""
    picture = quadrants()
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[274] = orientation
        yield Hostile(
            f"orientation-{orientation}.jpg", jpeg(stored(picture, orientation), exif=exif), "jpeg"
        )
    large = quadrants(size=(1920, 1280))
    yield Hostile(
        "large-turned.jpg", jpeg(stored(large, 6), exif=exif_of(6)), "jpeg", (1920, 1280)
    )
    large_inked = inked(picture).resize(large.size, Image.Resampling.NEAREST)
    yield Hostile("large-cmyk.jpg", jpeg(large_inked), "jpeg", (1920, 1280))
    yield Hostile("no-such-orientation.jpg", jpeg(picture, exif=exif_of(77)), "jpeg")
    yield Hostile(
        "broken-exif.jpg",
        jpeg(picture, exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\xa5" * 40),
        "jpeg",
    )
    adobe = jpeg(inked(picture))
    yield Hostile("cmyk-adobe.jpg", adobe, "jpeg")
    unmarked = jpeg(ImageChops.invert(inked(picture)))
    start, end = segment(unmarked, 0xEE)
    yield Hostile("cmyk.jpg", unmarked[:start] + unmarked[end:], "jpeg")
    # YCCK is Adobe's transform 2: inverted ink C' is taken for 1 - R, and that RGB is stored as
    # luma and chroma.
    ink = np.asarray(inked(picture))
    brightness = np.asarray(Image.fromarray(ink[:, :, :3]).convert("YCbCr"))
    planes = np.concatenate([brightness, 255 - ink[:, :, 3:]], 2)
    ycck = jpeg(Image.fromarray(255 - planes, "CMYK"))
    yield Hostile("ycck.jpg", patched(ycck, segment(ycck, 0xEE)[1] - 1, b"\2"), "jpeg")
    yield Hostile("rgb-stored.jpg", jpeg(picture, keep_rgb=True), "jpeg")
    yield Hostile(
        "film-behind.jpg", jpeg(picture) + b"\0\0\0\x18ftypisom" + b"\xff\xda" * 500, "jpeg"
    )
    yield Hostile("trailing-garbage.jpg", jpeg(picture) + b"\0garbage" * 99, "jpeg")


def transparent() -> Iterator[Hostile]:
    """Pictures with holes: shown on white, or on the colour asked for."""
    alphas = [255, 128, 0, 255]
    picture = quadrants(
        [(*colour, alpha) for colour, alpha in zip(QUADRANTS, alphas, strict=True)], "RGBA"
    )
    on_white = [QUADRANTS[0], (147, 207, 157), WHITE, QUADRANTS[3]]
    on_black = [QUADRANTS[0], (20, 80, 30), BLACK, QUADRANTS[3]]
    holes = [QUADRANTS[0], QUADRANTS[1], WHITE, QUADRANTS[3]]
    yield Hostile("alpha.png", saved(picture, "PNG"), "png", quadrants=on_white)
    yield Hostile(
        "alpha-on-black.png",
        saved(picture, "PNG"),
        "png",
        quadrants=on_black,
        options={"background": "#000"},
    )
    yield Hostile("alpha.webp", saved(picture, "WEBP", lossless=True), "webp", quadrants=on_white)
    yield Hostile(
        "alpha.avif", saved(picture, "AVIF", quality=95), "avif", quadrants=on_white, tolerance=10
    )
    yield Hostile("alpha.tif", saved(picture, "TIFF"), "tiff", quadrants=on_white)
    grey = quadrants([(level, alpha) for level, alpha in zip(LUMA, alphas, strict=True)], "LA")
    half = round((LUMA[1] + 255) / 2)
    shown = [GREYS[0], (half, half, half), WHITE, GREYS[3]]
    yield Hostile("grey-alpha.png", saved(grey, "PNG"), "png", quadrants=shown)
    keyed = saved(quadrants(), "PNG", transparency=QUADRANTS[2])
    yield Hostile("colour-key.png", keyed, "png", quadrants=holes)
    palette = quadrants([0, 1, 2, 3], "P")
    palette.putpalette([level for colour in QUADRANTS for level in colour])
    yield Hostile(
        "transparent-palette.png", saved(palette, "PNG", transparency=2), "png", quadrants=holes
    )
    yield Hostile(
        "palette-of-alphas.png",
        saved(palette, "PNG", transparency=bytes(alphas)),
        "png",
        quadrants=on_white,
    )
    yield Hostile("transparent.gif", saved(palette, "GIF", transparency=2), "gif", quadrants=holes)


def wide() -> Iterator[Hostile]:
    """More than 8 bits a channel: must be scaled, not clipped."""
    levels = np.asarray(quadrants(LUMA, "L"))
    colours = np.asarray(quadrants())
    sixteen = Image.fromarray(levels.astype(np.uint16) * 257)
    yield Hostile("grey-16.png", saved(sixteen, "PNG"), "png", quadrants=GREYS)
    rows = b"".join(
        b"\0" + row.tobytes() for row in (colours.astype(np.uint16) * 257).astype(">u2")
    )
    yield Hostile("colour-16.png", png(WIDTH, HEIGHT, 16, 2, rows), "png")
    yield Hostile("grey-16.tif", saved(sixteen, "TIFF"), "tiff", quadrants=GREYS)
    yield Hostile(
        "integer-32.tif",
        saved(Image.fromarray(levels.astype(np.int32) * 257), "TIFF"),
        "tiff",
        quadrants=GREYS,
    )
    as_is = Image.fromarray(levels.astype(np.int32))
    yield Hostile("integer-32-of-8.tif", saved(as_is, "TIFF"), "tiff", quadrants=GREYS)
    fraction = levels.astype(np.float32) / 255
    yield Hostile("float.tif", saved(Image.fromarray(fraction), "TIFF"), "tiff", quadrants=GREYS)
    fraction = fraction.copy()
    fraction[0, 0], fraction[0, 1], fraction[0, 2] = np.nan, np.inf, -np.inf
    yield Hostile(
        "float-not-a-number.tif", saved(Image.fromarray(fraction), "TIFF"), "tiff", quadrants=GREYS
    )


def moving() -> Iterator[Hostile]:
    """Animations: their first frame is the picture."""
    frames = {
        "save_all": True,
        "append_images": [ImageChops.invert(quadrants())] * 3,
        "duration": 100,
    }
    yield Hostile("moving.gif", saved(quadrants(), "GIF", **frames), "gif")
    yield Hostile("moving.webp", saved(quadrants(), "WEBP", lossless=True, **frames), "webp")
    animated = saved(quadrants(), "PNG", **frames)
    yield Hostile("moving.png", animated, "png")
    at = animated.index(b"acTL")
    claim = chunk(b"acTL", struct.pack(">II", 2**31 - 1, 0))
    yield Hostile("two-billion-frames.png", patched(animated, at - 4, claim), "png")
    film = saved(quadrants(), "AVIF", quality=90, **frames)
    for box in (b"mvhd", b"tkhd", b"mdhd"):  # blank the times of making
        film = patched(film, film.index(box) + 8, bytes(16))
    yield Hostile("moving.avif", film, "avif", tolerance=10)
    small = saved(Image.new("RGB", (WIDTH, HEIGHT), QUADRANTS[0]), "GIF", transparency=0)
    canvas = patched(small, 6, struct.pack("<HH", 2 * WIDTH, 2 * HEIGHT))
    yield Hostile(
        "frame-in-canvas.gif", canvas, "gif", (192, 128), quadrants=[None, WHITE, WHITE, WHITE]
    )


def profiled() -> Iterator[Hostile]:
    """Colours that mean something else by their profile."""
    curve = b"curv\0\0\0\0\0\0\0\1\2\x33\0\0"  # gamma 2.2
    tags = {b"wtpt": xyz((0.9642, 1, 0.8249))} | dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve)
    tags |= {name: xyz(P3[:, place]) for place, name in enumerate((b"rXYZ", b"gXYZ", b"bXYZ"))}
    light = linear(QUADRANTS) @ (np.linalg.inv(P3) @ SRGB).T
    colours = [tuple(round(level) for level in row) for row in 255 * light.clip(0, 1) ** (1 / 2.2)]
    wide_gamut = profile(b"RGB ", tags)
    yield Hostile(
        "display-p3.png", saved(quadrants(colours), "PNG", icc_profile=wide_gamut), "png"
    )
    yield Hostile("display-p3.jpg", jpeg(quadrants(colours), icc_profile=wide_gamut), "jpeg")
    # Levels are light.
    even = profile(b"GRAY", {b"wtpt": tags[b"wtpt"], b"kTRC": b"curv" + bytes(8)})
    grey = quadrants([round(255 * float(linear(level))) for level in LUMA], "L")
    yield Hostile("linear-grey.png", saved(grey, "PNG", icc_profile=even), "png", quadrants=GREYS)
    yield Hostile("profile-of-another-space.jpg", jpeg(quadrants(), icc_profile=even), "jpeg")
    yield Hostile("broken-profile.jpg", jpeg(quadrants(), icc_profile=b"\xa5" * 300), "jpeg")


def strangers() -> Iterator[Hostile]:
    """What is no picture, or not the one that its name says."""
    yield Hostile("png-inside.jpg", saved(quadrants(), "PNG"), "png")
    yield Hostile("jpeg-inside.png", jpeg(quadrants()), "jpeg")
    yield Hostile("no-extension", saved(quadrants(), "WEBP", lossless=True), "webp")
    yield Hostile("zero-bytes.jpg", b"", error="zero bytes")
    yield Hostile("text.jpg", b"This photo is no longer available.\n", error="not a picture: text")
    page = b"\xef\xbb\xbf\n<!DOCTYPE html><html><body>404 Not Found</body></html>"
    yield Hostile("page.jpg", page, error="not a picture: a web page")
    yield Hostile(
        "noise.jpg", random.Random(0).randbytes(5000), error="not a picture: its first bytes"
    )
    yield Hostile("zeros.jpg", bytes(5000), error="not a picture: its first bytes")
    yield Hostile(
        "garbage-before.jpg", b"\0\1\2" + jpeg(quadrants()), error="not a picture: its first bytes"
    )
    heads = {
        "zip": b"PK\3\4",
        "pdf": b"%PDF-1.7",
        "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        "psd": b"8BPS",
    }
    heads |= {"gzip": b"\x1f\x8b\x08", "mp4": b"\0\0\0\x18ftypisom", "ico": b"\0\0\1\0\1\0"}
    heads |= {"svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>", "riff": b"RIFF\0\0\0\0AVI "}
    for name, head in heads.items():
        yield Hostile(
            f"inside-{name}.jpg", head + bytes(99), name, error=f"format '{name}' cannot be read"
        )
    error, only_jpeg = "format 'ppm' is not in the allow-list", {"formats": ("jpeg",)}
    yield Hostile(
        "not-allowed.ppm", saved(quadrants(), "PPM"), "ppm", error=error, options=only_jpeg
    )
    yield Hostile(
        "not-allowed.gif",
        saved(quadrants(), "GIF"),
        "gif",
        error="format 'gif'",
        options={"formats": ("png",)},
    )


def cut() -> Iterator[Hostile]:
    """Files that end too early: refused, or salvaged where one asks for it."""
    kinds = {"JPEG": {"quality": 92}, "PNG": {}, "GIF": {}, "BMP": {}, "PPM": {}}
    files = {kind.lower(): saved(textured(), kind, **options) for kind, options in kinds.items()}
    top, bottom = [*QUADRANTS[:2], None, None], [None, None, *QUADRANTS[2:]]
    for name, data in files.items():
        most, formats = data[: len(data) * 3 // 4], {"formats": (name,)}
        yield Hostile(f"cut.{name}", most, name, error=f"truncated {name}", options=formats)
        options = {**formats, "salvage_truncated": True}
        rest = bottom if name == "bmp" else top  # BMP begins with its last row
        yield Hostile(
            f"salvaged.{name}", most, name, quadrants=rest, tolerance=20, options=options
        )
    progressive = jpeg(textured(), progressive=True)
    most = progressive[: len(progressive) * 3 // 4]
    yield Hostile("cut-progressive.jpg", most, "jpeg", error="truncated jpeg")
    yield Hostile(
        "salvaged-progressive.jpg", most, "jpeg", tolerance=20, options={"salvage_truncated": True}
    )
    yield Hostile("half.webp", half(saved(textured(), "WEBP")), "webp", error="truncated webp")
    tiff_options = {"salvage_truncated": True}  # which does not reach TIFF
    yield Hostile(
        "half-salvaged.tif",
        half(saved(textured(), "TIFF")),
        "tiff",
        error="truncated tiff",
        options=tiff_options,
    )
    yield Hostile("half.tif", half(saved(textured(), "TIFF")), "tiff", error="truncated tiff")
    yield Hostile("half.avif", half(saved(textured(), "AVIF")), "avif", error="broken avif")
    head = files["jpeg"][: segment(files["jpeg"], 0xDA)[1]]
    yield Hostile("header-only.jpg", head, "jpeg", error="truncated jpeg")
    yield Hostile("marker-only.jpg", b"\xff\xd8\xff", "jpeg", error="broken jpeg")
    yield Hostile("header-only.png", files["png"][:33], "png", error="truncated png")
    yield Hostile("signature-only.gif", b"GIF89a", "gif", error="truncated gif")
    yield Hostile(
        "half-salvaged.webp",
        half(saved(textured(), "WEBP")),
        "webp",
        error="truncated webp",
        options={"salvage_truncated": True},
    )


def bombs() -> Iterator[Hostile]:
    """Small files that ask for much."""
    bomb = "a decompression bomb"
    yield Hostile("bomb.png", png(60000, 60000, 1, 0, bytes(1_000_000)), "png", error=bomb)
    gif = saved(quadrants(), "GIF")
    yield Hostile("bomb.gif", patched(gif, 6, struct.pack("<HH", 65535, 65535)), "gif", error=bomb)
    bmp = saved(quadrants(), "BMP")
    yield Hostile(
        "bomb.bmp", patched(bmp, 18, struct.pack("<ii", 100_000, 100_000)), "bmp", error=bomb
    )
    yield Hostile("bomb.tif", tiff(1_000_000, 1_000_000), "tiff", error=bomb)
    photo = jpeg(quadrants())
    height_at = segment(photo, 0xC0)[0] + 5
    yield Hostile(
        "bomb.jpg", patched(photo, height_at, struct.pack(">HH", 65000, 65000)), "jpeg", error=bomb
    )
    webp = saved(quadrants([(*colour, 9) for colour in QUADRANTS], "RGBA"), "WEBP")
    canvas = (65534).to_bytes(3, "little") * 2
    yield Hostile("bomb.webp", patched(webp, 24, canvas), "webp", error=bomb)
    lossless = saved(quadrants(), "WEBP", lossless=True)
    yield Hostile(
        "lossless-bomb.webp", patched(lossless, 21, b"\xff\xff\xff\x0f"), "webp", error=bomb
    )
    lossy = saved(quadrants(), "WEBP")
    yield Hostile("lossy-bomb.webp", patched(lossy, 26, b"\xff\x3f\xff\x3f"), "webp", error=bomb)
    tight = {"max_pixels": 6000}
    yield Hostile(
        "many-pixels.jpg", photo, "jpeg", error="a decompression bomb: 96x64", options=tight
    )
    yield Hostile(
        "many-bytes.jpg", photo, "jpeg", error="too many bytes", options={"max_bytes": 100}
    )
    yield Hostile("long-side.png", png(60000, 1500, 1, 0, b""), "png", error="too long a side")
    yield Hostile(
        "thin.png", png(6000, 20, 8, 0, bytes(6001 * 20)), "png", error="too long and thin"
    )
    yield Hostile(
        "one-line.png", png(1, 5000, 8, 0, bytes(10000)), "png", error="too long and thin"
    )
    progressive = jpeg(quadrants(), progressive=True)
    scan = progressive[progressive.rindex(b"\xff\xda") : -2]
    yield Hostile(
        "scans.jpg", progressive[:-2] + scan * 5000 + b"\xff\xd9", "jpeg", error="a scan bomb"
    )
    yield Hostile(
        "film-behind-progressive.jpg",
        progressive + b"\0\0\0\x18ftypisom" + b"\xff\xda" * 500,
        "jpeg",
    )
    zeros = zlib.compress(bytes(16 * 2**20))
    rows = b"".join(b"\0" + row.tobytes() for row in np.asarray(quadrants()))
    for kind, body in (("zTXt", b"comment\0\0" + zeros), ("iCCP", b"profile\0\0" + zeros)):
        yield Hostile(
            f"{kind}-bomb.png", png(WIDTH, HEIGHT, 8, 2, rows, chunk(kind.encode(), body)), "png"
        )


def odd() -> Iterator[Hostile]:
    """Valid, but at the edge; and headers that lie."""
    dot = Image.new("RGB", (1, 1), QUADRANTS[0])
    yield Hostile("one-pixel.gif", saved(dot, "GIF"), "gif", (1, 1), quadrants=[QUADRANTS[0]] * 4)
    yield Hostile(
        "one-pixel.jpg", jpeg(dot), "jpeg", (1, 1), quadrants=[QUADRANTS[0]] * 4, tolerance=10
    )
    photo = jpeg(quadrants())
    height_at = segment(photo, 0xC0)[0] + 5
    yield Hostile("no-height.jpg", patched(photo, height_at, b"\0\0"), "jpeg", error="broken jpeg")
    yield Hostile("no-width.png", png(0, 64, 8, 2, b""), "png", error="broken png")
    rows = b"".join(b"\0" + row.tobytes() for row in np.asarray(quadrants()))
    good = png(WIDTH, HEIGHT, 8, 2, rows)
    yield Hostile("wrong-checksum.png", patched(good, 29, b"\0\0\0\0"), "png", error="broken png")
    yield Hostile(
        "no-palette.png",
        png(WIDTH, HEIGHT, 8, 3, bytes((WIDTH + 1) * HEIGHT)),
        "png",
        error="broken png",
    )
    yield Hostile("no-pixels.png", png(WIDTH, HEIGHT, 8, 2, b""), "png", error="truncated png")
    yield Hostile(
        "endless-tiff.tif",
        patched(tiff(8, 8), 4, struct.pack("<I", 2**31)),
        "tiff",
        error="broken tiff",
    )


def flips(count: int = 360) -> Iterator[tuple[str, bytes]]:
    """Seeded bit flips, half of them in the first 100 bytes. Expected: pixels of the right shape,
    or a reason."""
    chance = random.Random(7)
    picture = textured()
    animation = {"save_all": True, "append_images": [picture], "duration": 50}
    files = [
        jpeg(picture, exif=exif_of(6)),
        jpeg(picture, progressive=True),
        jpeg(picture.convert("CMYK")),
    ]
    files += [saved(picture, kind) for kind in ("PNG", "GIF", "WEBP", "BMP", "TIFF", "AVIF")]
    files += [
        saved(picture, "TIFF", compression="tiff_lzw"),
        saved(picture, "GIF", **animation),
        HEIC,
    ]
    for number in range(count):
        data = bytearray(files[number % len(files)])
        reach = 100 if chance.random() < 0.5 else len(data)
        for _ in range(chance.choice((1, 1, 3, 12))):
            data[chance.randrange(reach)] ^= 1 << chance.randrange(8)
        yield f"flip-{number:03}.jpg", bytes(data)


def write(folder: Path, mutants: int = 360) -> int:
    """All of it as files, the flips in a folder of their own; how many."""
    (folder / "flips").mkdir(parents=True, exist_ok=True)
    files = [(kind.name, kind.data) for kind in hostile()] + [
        (f"flips/{name}", data) for name, data in flips(mutants)
    ]
    for name, data in files:
        (folder / name).write_bytes(data)
    return len(files)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(f"usage: python {sys.argv[0]} FOLDER")
    print(f"{write(Path(sys.argv[1]))} files in {sys.argv[1]}")
