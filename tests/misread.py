"""Pictures that plain Pillow misreads while browsers and libtiff show them, and files that lack
pixels; a part of the hostile corpus."""

import base64
import struct
import zlib
from collections.abc import Iterator

import numpy as np
from forging import (
    GREYS,
    HEIGHT,
    LUMA,
    QUADRANTS,
    WIDTH,
    Hostile,
    chunk,
    jpeg,
    linear,
    patched,
    png,
    profile,
    quadrants,
    saved,
    textured,
    tiff_of,
    xyz,
)
from PIL import Image

WHITE = (255, 255, 255)
RGB = np.asarray(quadrants())
GREY = np.asarray(quadrants(LUMA, "L"))
ROWS = b"".join(b"\0" + row.tobytes() for row in RGB)
SRGB_TAGS = {b"wtpt": xyz((0.9642, 1, 0.8249)), b"rXYZ": xyz((0.43607, 0.22249, 0.01392))}
SRGB_TAGS |= {b"gXYZ": xyz((0.38515, 0.71687, 0.09708)), b"bXYZ": xyz((0.14307, 0.06061, 0.71410))}

# A JPEG XL of the quadrants at 64x64, made with pillow-jxl-plugin, for machines without it.
JXL = base64.b64decode(
    "/wpPQCQIAAEAxABLOGmYyoP3K0iYAFBjf2PQeLlAEACDNFMDfF/Me0Ak4z+z1FCYxAVgKAYrokFp7sMC"
)


def misread() -> Iterator[Hostile]:
    yield from tiffs()
    yield from pngs()
    yield from profiles()
    yield from others()
    yield from closed()
    yield from large_parts()


def tiffs() -> Iterator[Hostile]:
    grey = GREY[:, :, None].astype(np.int64)
    for name, data in {
        "white-is-zero-16.tif": tiff_of(65535 - grey * 257, 16, 0),
        "grey-12.tif": tiff_of(grey * 4095 // 255, 12, 1),
        "unsigned-32.tif": tiff_of(grey * (2**32 // 256), 32, 1),
        "big-endian-big.tif": tiff_of(grey, 8, 1, order=">", big=True),
        "swapped-float.tif": tiff_of(grey / 255, 32, 1, order=">", kind="f", deflated=True),
    }.items():
        yield Hostile(name, data, "tiff", quadrants=GREYS, tolerance=2)
    places = np.asarray(quadrants([0, 1, 2, 3], "L"))[:, :, None]
    for name, scale in (("colour-map-8", 1), ("colour-map-16", 257)):
        colours = np.zeros((3, 256), int)
        colours[:, :4] = np.transpose(QUADRANTS)
        data = tiff_of(places, 8, 3, tags={320: tuple((colours * scale).ravel().tolist())})
        yield Hostile(f"{name}.tif", data, "tiff")
    half = np.dstack([GREY // 2, np.full_like(GREY, 128)])
    shown: list[tuple[int, int, int] | None] = [(level // 2 + 127,) * 3 for level in LUMA]
    yield Hostile(
        "premultiplied.tif",
        tiff_of(half, 8, 1, tags={338: (1,)}),
        "tiff",
        quadrants=shown,
        tolerance=3,
    )
    planes = tiff_of(RGB.astype(np.int64) * 257, 16, 2, planar=True)
    yield Hostile("planes-16.tif", planes, "tiff")
    xmp = b'<x tiff:Orientation="6"/>'
    yield Hostile("xmp-only.tif", tiff_of(RGB, 8, 2, tags={700: tuple(xmp)}), "tiff")


def pngs() -> Iterator[Hostile]:
    places = np.asarray(quadrants([0, 1, 2, 3], "L"))
    for depth in (2, 4, 16):
        step = (2**depth - 1) // 3
        if depth == 16:
            rows = b"".join(
                b"\0" + row.tobytes() for row in (places.astype(np.int64) * step).astype(">u2")
            )
        else:
            bits = (places[:, :, None].astype(int) * step >> np.arange(depth - 1, -1, -1)) & 1
            packed = np.packbits(bits.reshape(HEIGHT, -1).astype(np.uint8), axis=1)
            rows = b"".join(b"\0" + row.tobytes() for row in packed)
        hole = chunk(b"tRNS", struct.pack(">H", 2 * step))
        shown: list[tuple[int, int, int] | None] = [(0, 0, 0), (85, 85, 85), WHITE, WHITE]
        data = png(WIDTH, HEIGHT, depth, 0, rows, hole)
        yield Hostile(f"grey-key-{depth}.png", data, "png", quadrants=shown, tolerance=1)
    broken = bytearray(chunk(b"tEXt", b"Comment\0hello"))
    broken[-1] ^= 1
    yield Hostile(
        "wrong-checksum-of-text.png", png(WIDTH, HEIGHT, 8, 2, ROWS, bytes(broken)), "png"
    )
    light = (255 * linear(RGB)).round().astype(np.uint8)
    rows = b"".join(b"\0" + row.tobytes() for row in light)
    # Browsers show gAMA on a screen of gamma 2.2, and the others by sRGB's own curve.
    by_gamma = [
        tuple(round(255 * (level / 255) ** (1 / 2.2)) for level in pixel)
        for pixel in _middles(light)
    ]
    gamma, srgb = chunk(b"gAMA", struct.pack(">I", 100_000)), chunk(b"sRGB", b"\0")
    primaries = (31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000)
    chromaticity = chunk(b"cHRM", struct.pack(">8I", *primaries))
    curve = b"curv" + bytes(8)
    even = profile(b"RGB ", SRGB_TAGS | dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve))
    embedded = chunk(b"iCCP", b"sRGB linear\0\0" + zlib.compress(even))
    cicp, cicp_srgb = chunk(b"cICP", bytes((1, 8, 0, 1))), chunk(b"cICP", bytes((1, 13, 0, 1)))
    levels = _middles(light)
    for name, before, expected in (
        ("gamma", gamma, by_gamma),
        ("gamma-and-primaries", gamma + chromaticity, QUADRANTS),
        ("srgb-over-gamma", gamma + chromaticity + srgb, levels),
        ("profile-over-srgb", embedded + srgb + gamma, QUADRANTS),
        ("cicp", cicp, QUADRANTS),
        ("cicp-over-profile", cicp_srgb + embedded, levels),
        ("unknown-cicp", chunk(b"cICP", bytes((99, 99, 0, 1))) + embedded, QUADRANTS),
    ):
        data = png(WIDTH, HEIGHT, 8, 2, rows, before)
        yield Hostile(f"{name}.png", data, "png", quadrants=list(expected), tolerance=4)
    xmp = b"XML:com.adobe.xmp\0\0\0\0\0" + b'<x tiff:Orientation="6"/>'
    yield Hostile("xmp-only.png", png(WIDTH, HEIGHT, 8, 2, ROWS, chunk(b"iTXt", xmp)), "png")


def _middles(picture: np.ndarray) -> list[tuple[int, int, int]]:
    return [
        tuple(picture[y, x].tolist())
        for y in (HEIGHT // 4, HEIGHT * 3 // 4)
        for x in (WIDTH // 4, WIDTH * 3 // 4)
    ]


def profiles() -> Iterator[Hostile]:
    """A linear profile that is called sRGB, as some programs write it."""
    named = b"desc\0\0\0\0" + struct.pack(">I", 12) + b"sRGB linear\0" + bytes(78)
    tags = (
        {b"desc": named}
        | SRGB_TAGS
        | dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), b"curv" + bytes(8))
    )
    light = Image.fromarray((255 * linear(RGB)).round().astype(np.uint8))
    even = profile(b"RGB ", tags)
    yield Hostile("linear-called-srgb.jpg", jpeg(light, icc_profile=even), "jpeg", tolerance=8)
    yield Hostile(
        "linear-called-srgb.webp", saved(light, "WEBP", lossless=True, icc_profile=even), "webp"
    )
    grey = quadrants([round(255 * float(linear(level))) for level in LUMA], "L")
    yield Hostile(
        "grey-in-colour-profile.png", saved(grey, "PNG", icc_profile=even), "png", quadrants=GREYS
    )


def others() -> Iterator[Hostile]:
    header = struct.pack(
        "<IiiHHIIiiII4I",
        108,
        WIDTH,
        -HEIGHT,
        1,
        32,
        3,
        0,
        0,
        0,
        0,
        0,
        0xFF0000,
        0xFF00,
        0xFF,
        0xFF << 24,
    )
    header += bytes(108 - len(header))
    pixels = np.dstack([RGB[:, :, ::-1], np.zeros((HEIGHT, WIDTH), np.uint8)]).tobytes()
    head = b"BM" + struct.pack("<IHHI", 122 + len(pixels), 0, 0, 122)
    yield Hostile("zero-alpha.bmp", head + header + pixels, "bmp")
    coloured = quadrants([0, 1, 2, 3], "P")
    coloured.putpalette([level for colour in QUADRANTS for level in colour])
    small = saved(coloured, "GIF")
    canvas = patched(small, 6, struct.pack("<HH", 2 * WIDTH, 2 * HEIGHT))
    shown = [None, WHITE, WHITE, WHITE]
    yield Hostile(
        "opaque-frame-in-canvas.gif", canvas, "gif", (2 * WIDTH, 2 * HEIGHT), quadrants=shown
    )
    try:
        import pillow_jxl  # noqa: F401
    except ImportError:
        yield Hostile("plain.jxl", JXL, "jpeg-xl", error="a JPEG XL picture, which needs an extra")
    else:
        yield Hostile("plain.jxl", JXL, "jpeg-xl", (64, 64))
        yield Hostile("half.jxl", JXL[: len(JXL) // 2], "jpeg-xl", error="broken jpeg-xl")
    text = b"P3 # made by hand\n%d %d\n100\n" % (WIDTH, HEIGHT)
    text += b" ".join(b"%d" % round(level / 2.55) for level in RGB.ravel().tolist())
    yield Hostile("text.ppm", text, "ppm", tolerance=2)


def closed() -> Iterator[Hostile]:
    """Files that lack pixels and yet end as whole ones do."""
    photo = jpeg(textured())
    cut = photo[: len(photo) * 3 // 4].rstrip(b"\xff") + b"\xff\xd9"
    yield Hostile("cut-and-closed.jpg", cut, "jpeg", error="truncated jpeg")
    top = [*QUADRANTS[:2], None, None]
    salvaging = {"salvage_truncated": True}
    yield Hostile(
        "cut-and-closed-salvaged.jpg", cut, "jpeg", quadrants=top, tolerance=20, options=salvaging
    )
    yield Hostile(
        "all-grey.jpg",
        jpeg(Image.new("RGB", (WIDTH, HEIGHT), (128, 128, 128))),
        "jpeg",
        quadrants=[(128, 128, 128)] * 4,
    )
    half_of_rows = png(WIDTH, HEIGHT, 8, 2, ROWS[: len(ROWS) // 2])
    yield Hostile("half-of-rows.png", half_of_rows, "png", error="truncated png")
    black = png(WIDTH, HEIGHT, 8, 2, bytes(len(ROWS)))
    yield Hostile("all-black.png", black, "png", quadrants=[(0, 0, 0)] * 4)
    short = saved(quadrants(size=(WIDTH, HEIGHT // 2)).quantize(8), "GIF")
    frame = short.index(b",\0\0\0\0") + 5
    for at in (6, frame):
        short = patched(short, at, struct.pack("<HH", WIDTH, HEIGHT))
    yield Hostile("half-of-rows.gif", short, "gif", error="truncated gif")


def large_parts() -> Iterator[Hostile]:
    """Small pictures of parts that are not small: decoders allocate those whole."""
    bomb = "a decompression bomb"
    grey = GREY[:, :, None]
    tiled = tiff_of(grey, 8, 1, tile=16, deflated=True)
    for name, side in (("tiles-of-gigabytes", 40_000), ("tiles-of-a-gigabyte", 30_000)):
        data = tiled
        for tag in (322, 323):
            entry = data.index(struct.pack("<HHII", tag, 3, 1, 16))
            data = patched(data, entry, struct.pack("<HHII", tag, 4, 1, side))
        yield Hostile(f"{name}.tif", data, "tiff", error=bomb)
    film = saved(quadrants(size=(WIDTH * 2, HEIGHT * 2)), "AVIF", quality=90)
    size = film.index(b"ispe") + 8
    data = patched(film, size, struct.pack(">II", WIDTH, HEIGHT))
    yield Hostile(
        "larger-frame.avif", data, "avif", error=bomb, options={"max_pixels": WIDTH * HEIGHT}
    )
    codestream = saved(quadrants(), "JPEG2000", no_jp2=True)
    tiny_tiles = patched(codestream, 24, struct.pack(">II", 1, 1))
    tiny_tiles = patched(tiny_tiles, 8, struct.pack(">II", 5000, 5000))
    yield Hostile("tiny-tiles.j2k", tiny_tiles, "jpeg2000", error="too much memory")
    tight = {"max_memory": 1, "max_pixels": 10**6}
    for kind, name in (("WEBP", "webp"), ("AVIF", "avif"), ("PNG", "png")):
        large = saved(Image.new("RGB", (900, 900)), kind)
        yield Hostile(f"much-memory.{name}", large, name, error="too much memory", options=tight)
