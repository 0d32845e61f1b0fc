"""Plain JPEGs that the model's device decodes: which ones, with which pixels, and what becomes of
the others. The device is a processor here, with torchvision's decoder."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from packages import need
from PIL import Image, ImageCms
from small_captioner import save_captioner

from raycap.captioners.trained.device_jpegs import decode_jpegs
from raycap.cli import main
from raycap.images import Picture, Reading, Square, SquareOrJpeg, read_picture
from raycap.images.pixels import LARGE_PIXELS

pytestmark = [need("torchvision"), pytest.mark.usefixtures("no_ray")]
CPU = torch.device("cpu")
PHOTO = Path(__file__).parent.parent / "samples" / "beach.jpg"


def photo(size: tuple[int, int] = (120, 90), mode: str = "RGB", **saved: Any) -> bytes:
    picture = Image.open(PHOTO).convert("RGB").resize(size).convert(mode)
    file = io.BytesIO()
    picture.save(file, "jpeg", **{"quality": 90, **saved})
    return file.getvalue()


def exif(orientation: int) -> Image.Exif:
    found = Image.Exif()
    found[274] = orientation
    return found


def wide_gamut() -> bytes:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
    return profile.tobytes()


def with_two_parts() -> bytes:
    """As phones append a video."""
    return photo() + b"video" * 100


def named_rgb(data: bytes) -> bytes:
    """Channels with the names of files that hold RGB, and no marker that says otherwise."""
    named = bytearray(data.replace(data[2 : data.index(b"\xff\xdb")], b"", 1))
    frame, scan = named.index(b"\xff\xc0") + 10, named.index(b"\xff\xda") + 5
    for channel, name in enumerate(b"RGB"):
        named[frame + 3 * channel] = named[scan + 2 * channel] = name
    return bytes(named)


PLAIN = {
    "4:2:0": photo(),
    "4:4:4": photo(subsampling=0),
    "4:2:2": photo(subsampling=1),
    "upright by EXIF": photo(exif=exif(1)),
    "optimised": photo(optimize=True),
}
ODD = {
    "turned by EXIF": photo(exif=exif(6)),
    "grey": photo(mode="L"),
    "CMYK": photo(mode="CMYK"),
    "progressive": photo(progressive=True),
    "truncated": photo()[:-400],
    "something behind it": with_two_parts(),
    "channels named RGB": named_rgb(photo()),
    "wide and thin": photo((6000, 60)),
    "a PNG": b"\x89PNG\r\n\x1a\n",
    "nothing": b"",
}


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("resize", ["squash", "crop"])
def test_plain_jpegs_go_to_the_device_with_about_the_same_pixels(name: str, resize: Any) -> None:
    data = PLAIN[name]
    left = read_picture(data, Reading(), SquareOrJpeg(64, resize))
    assert left.pixels is not None and left.pixels.tobytes() == data
    wanted = read_picture(data, Reading(), Square(64, resize))
    assert (left.width, left.height) == (wanted.width, wanted.height) == (120, 90)
    [found] = decode_jpegs([left.pixels], Reading(), Square(64, resize), CPU)
    assert isinstance(found, torch.Tensor) and wanted.pixels is not None
    error = np.mean((found.numpy().astype(float) - wanted.pixels.astype(float)) ** 2)
    assert 10 * np.log10(255**2 / error) > 35  # decibels


@pytest.mark.parametrize("name", ODD)
def test_odd_pictures_go_the_way_of_the_processor(name: str) -> None:
    ours = read_picture(ODD[name], Reading(), SquareOrJpeg(64))
    usual = read_picture(ODD[name], Reading(), Square(64))
    assert (ours.error, ours.width, ours.height) == (usual.error, usual.width, usual.height)
    assert (ours.pixels is None) == (usual.pixels is None)
    if usual.pixels is not None:
        np.testing.assert_array_equal(ours.pixels, usual.pixels)


def test_limits_of_the_reader_hold() -> None:
    data = photo()
    for limits in (Reading(max_pixels=5000), Reading(formats=("png",)), Reading(max_bytes=900)):
        assert read_picture(data, limits, SquareOrJpeg(64)).pixels is None
    padded = read_picture(data, Reading(), SquareOrJpeg(64, "pad"))
    assert padded.pixels is not None and padded.pixels.shape == (64, 64, 3)
    side = int(LARGE_PIXELS**0.5) + 8
    large = read_picture(photo((side, side), quality=30), Reading(), SquareOrJpeg(64))
    assert large.pixels is not None and large.pixels.ndim == 3


def test_a_file_that_the_device_cannot_decode_is_read_by_the_processor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import torchvision.io

    decode = torchvision.io.decode_jpeg
    broken = photo((121, 90))

    def choosy(files: list[torch.Tensor], *how: Any, **more: Any) -> Any:
        if any(len(file) == len(broken) for file in files):
            raise RuntimeError("nvjpegDecode failed: 5")
        return decode(files, *how, **more)

    monkeypatch.setattr(torchvision.io, "decode_jpeg", choosy)
    cut = photo()[:-400]
    files = [np.frombuffer(data, np.uint8) for data in (photo(), broken, cut)]
    good, by_reader, fault = decode_jpegs(files, Reading(), Square(64), CPU)
    assert isinstance(good, torch.Tensor)
    assert isinstance(by_reader, Picture) and by_reader.pixels is not None
    expected = read_picture(broken, Reading(), Square(64)).pixels
    assert expected is not None
    np.testing.assert_array_equal(by_reader.pixels, expected)
    if isinstance(fault, Picture):  # some decoders show what there is
        assert "truncated" in fault.error


@pytest.mark.thorough
def test_a_job_decodes_plain_jpegs_on_the_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows are those of the usual way: also of odd and broken files, and of what only the device
    finds to be broken."""
    from raycap.captioners.trained import device_jpegs

    save_captioner(tmp_path / "model")
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, data in enumerate([*PLAIN.values(), *ODD.values()]):
        (folder / f"{number:02d}.jpg").write_bytes(data)
    damaged = photo((99, 77))
    (folder / "damaged.jpg").write_bytes(damaged)
    decode: Callable[..., Any] = device_jpegs._decode
    sizes: list[int] = []

    def counting(files: Any, device: torch.device) -> Any:
        sizes.append(len(files))
        found = decode(files, device)
        return [
            None if len(file) == len(damaged) else each
            for file, each in zip(files, found, strict=True)
        ]

    def read_as_broken(data: bytes, *_: Any) -> Picture:
        return Picture(None, "jpeg", 99, 77, "truncated jpeg: only the device has seen it")

    monkeypatch.setattr(device_jpegs, "_decode", counting)
    monkeypatch.setattr(device_jpegs, "read_guarded", read_as_broken)
    job = ["caption", str(folder), "--model", str(tmp_path / "model"), "--batch", "4"]
    assert main([*job, "--out", str(tmp_path / "usual")]) == 1
    assert sizes == []
    assert main([*job, "--out", str(tmp_path / "out"), "--jpegs-on-device"]) == 1
    assert sum(sizes) == len(PLAIN) + 1

    usual, ours = (
        {row["key"]: row for row in pq.read_table(tmp_path / out / "captions").to_pylist()}
        for out in ("usual", "out")
    )
    assert ours.keys() == usual.keys()
    assert ours.pop("damaged.jpg")["status"] == "failed_to_decode"
    for key, row in ours.items():
        for name in ("status", "error_message", "width", "height", "sha256"):
            assert row[name] == usual[key][name], (key, name)
        if int(key[:2]) >= len(PLAIN):
            assert row["caption"] == usual[key]["caption"], "its pixels are the same"
    assert json.loads((tmp_path / "out" / "run.json").read_text())["identity"]["jpegs_on_device"]
    assert main([*job, "--out", str(tmp_path / "usual"), "--jpegs-on-device"]) == 2
