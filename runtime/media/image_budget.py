"""What a picture may cost before it is decoded: pixels, bytes at the peak, the shape, and its EXIF block."""

from __future__ import annotations

import io
import re
import struct
from typing import Any, BinaryIO

from PIL import Image

from ...errors import UserError

MIN_SIDE = 16
MAX_PIXELS = 110_000_000
"""More than a phone's 108 megapixels. A photo of 8 bits takes 8 bytes a pixel at its peak: decoded, and as RGB."""
MAX_ASPECT = 100
MAX_FILE_BYTES = 512 << 20
MAX_DECODING_BYTES = 8 * MAX_PIXELS
"""With the interpreter this stays below 1 GiB."""
MAX_EXIF_BYTES = 65_536
"""What one segment of a JPEG holds. Each of its entries may point to all of it, so that a longer block grows with the
square of its length when it is read."""

_RGB_BYTES = 4  # Pillow stores three bands in four bytes
_SLOW_DECODERS = ("ppm", "ppm_plain", "bmp_rle")
"""Written in Python: about a second a megapixel."""
# Beside the decoded picture, measured with the largest accepted ones.
_DECODER_BYTES = {"WEBP": 14, "AVIF": 16, "HEIF": 24, "JPEG2000": 32, "GIF": 4}
WHOLE_FILE = ("WEBP", "AVIF", "HEIF", "JPEG2000")
"""Formats whose decoders hold the file in memory."""
_MODE_BYTES = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16L": 2, "I;16B": 2, "I;16N": 2}
_TIFF_JPEG = (6, 7)
_IFD = re.compile(rb"II\*\0|MM\0\*")
_TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}


def check_size(width: int, height: int, name: str, most: int = MAX_PIXELS) -> None:
    """Refuse a side under 16 pixels, a shape longer than 100:1, or more pixels than `most`."""
    if min(width, height) < MIN_SIDE:
        raise UserError(
            f"{name} is {width}x{height} pixels, but each side needs at least {MIN_SIDE} pixels, so use a larger one."
        )
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise UserError(f"{name} is {width}x{height} pixels, longer than {MAX_ASPECT}:1, so cut it first.")
    if width * height > most:
        raise UserError(too_large(name, most))


def too_large(name: str, most: int = MAX_PIXELS) -> str:
    """The sentence that refuses a picture of too many pixels."""
    kind = "" if most == MAX_PIXELS else ", the most for a picture of its kind"
    return f"{name} has more than {most / 1e6:.3g} megapixels{kind}, so scale it down first."


def check_decoding(image: Image.Image, file_bytes: int, multi_scan: bool, name: str) -> None:
    """Refuse a picture that is opened but not decoded, where decoding it and making it RGB would take too much.

    Args:
        file_bytes: of its file, where that is in memory; 0 elsewhere.
        multi_scan: a JPEG that is decoded as a whole; see :func:`jpeg_layout`.
    """
    per_pixel = _MODE_BYTES.get(image.mode, 4) + _RGB_BYTES + _decoder_bytes(image, multi_scan)
    room = MAX_DECODING_BYTES - file_bytes
    check_size(image.width, image.height, name, min(MAX_PIXELS, max(int(room // per_pixel), 0)))


def _decoder_bytes(image: Image.Image, multi_scan: bool) -> int:
    tiles: list[Any] = getattr(image, "tile", None) or []
    if any(tile[0] in _SLOW_DECODERS for tile in tiles):
        return MAX_DECODING_BYTES // 4_000_000
    if image.format in ("JPEG", "MPO"):
        # Coefficients of 16 bits for every sample.
        return 2 * int(getattr(image, "layers", 4)) if multi_scan else 0
    if image.format == "TIFF":
        tags: Any = getattr(image, "tag_v2", {})
        bits = tags.get(258, (8,) * 4)
        samples = sum(bits) // 8 if isinstance(bits, tuple) else int(bits)
        return max(samples, 1) + (8 if tags.get(259) in _TIFF_JPEG else 0)  # one strip may be all of it
    return _DECODER_BYTES.get(image.format or "", 0)


def jpeg_layout(file: BinaryIO) -> tuple[int, bool]:
    """Bytes of a JPEG's EXIF blocks, and whether it is progressive or has its components in separate scans, so that
    the decoder holds all coefficients. (0, False) for what is no JPEG. The file is left at its beginning.
    """
    file.seek(0)
    exif, components = 0, 0
    try:
        if file.read(2) != b"\xff\xd8":
            return 0, False
        while True:
            marker = file.read(1)
            if not marker:
                return exif, True
            if marker != b"\xff":
                continue
            kind = file.read(1)
            while kind == b"\xff":
                kind = file.read(1)
            if not kind or kind in b"\x00\x01" or 0xD0 <= kind[0] <= 0xD8:
                continue
            body = file.read(max(int.from_bytes(file.read(2), "big") - 2, 0))
            if kind == b"\xe1" and body.startswith(b"Exif"):
                exif += len(body)
            elif 0xC0 <= kind[0] <= 0xCF and kind not in (b"\xc4", b"\xc8", b"\xcc"):
                if kind[0] not in (0xC0, 0xC1) or len(body) < 6:
                    return exif, True
                components = body[5]
            elif kind == b"\xda":
                return exif, not body or body[0] != components
            elif kind == b"\xd9":
                return exif, True
    finally:
        file.seek(0)


def exif_is_small(info: dict[Any, Any]) -> bool:
    """Whether reading a picture's EXIF block takes little memory; a PNG's may be in hexadecimal digits."""
    limits = {"exif": MAX_EXIF_BYTES, "Raw profile type exif": 2 * MAX_EXIF_BYTES}
    return all(len(info.get(name) or "") <= most for name, most in limits.items())


def embedded_exif_bytes(content: bytes) -> int:
    """The most that the entries of an EXIF block anywhere in a file say they hold."""
    most = 0
    for found in _IFD.finditer(content):
        start = found.start()
        order = "<" if content[start : start + 1] == b"I" else ">"
        try:
            (offset,) = struct.unpack_from(f"{order}L", content, start + 4)
            (count,) = struct.unpack_from(f"{order}H", content, start + offset)
            held = 0
            for place in range(count):
                _, kind, values = struct.unpack_from(f"{order}HHL", content, start + offset + 2 + 12 * place)
                held += min(_TYPE_BYTES.get(kind, 0) * values, len(content))
            most = max(most, held)
        except struct.error:
            continue
    return most


class _Meter:
    """Counts what is read of a picture's file, which may be about twice all of it: a TIFF whose entries all point to
    the same bytes would be read many times over.
    """

    def __init__(self, size: int) -> None:
        self._left = 2 * size + (8 << 20)

    def count(self, size: int) -> None:
        self._left -= size
        if self._left < 0:
            raise OSError("the picture reads its file too often")


class MeteredFile(io.FileIO):
    """A file on disk with a meter."""

    def __init__(self, descriptor: int, size: int) -> None:
        super().__init__(descriptor, "rb")
        self._meter = _Meter(size)

    def readinto(self, buffer: Any) -> int:
        count = super().readinto(buffer) or 0
        self._meter.count(count)
        return count

    def readall(self) -> bytes:
        content = super().readall() or b""
        self._meter.count(len(content))
        return content


class MeteredBytes(io.BytesIO):
    """Bytes in memory with a meter."""

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self._meter = _Meter(len(content))

    def read(self, size: int | None = -1, /) -> bytes:
        content = super().read(size)
        self._meter.count(len(content))
        return content
