"""Reading photos of every kind, refusing what is none, and the published preprocessing."""

from __future__ import annotations

import io
import os
import resource
import struct
import subprocess
import sys
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from consisti2v_rt import UserError
from consisti2v_rt.runtime.media import image as image_module
from consisti2v_rt.runtime.media.image import (
    Window,
    centre_offset,
    covering_size,
    load_image,
    preprocess,
    resize_window,
)
from consisti2v_rt.runtime.media.image_budget import MAX_PIXELS, check_decoding, jpeg_layout

EXAMPLE = Path(__file__).parents[1] / "assets" / "example.jpg"
RNG = np.random.default_rng(7)


def encode(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(height: int, width: int) -> np.ndarray:
    return RNG.integers(0, 256, (height, width, 3), dtype=np.uint8)


def refusal(source, action=load_image) -> str:
    """The message of the UserError, checked to be one plain sentence with no chained error printed after it."""
    with pytest.raises(UserError) as caught:
        action(source)
    message = str(caught.value)
    assert message.endswith(".") and "\n" not in message and ". " not in message and "Traceback" not in message
    assert caught.value.__cause__ is None and (caught.value.__context__ is None or caught.value.__suppress_context__)
    return message


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 64))


def test_every_kind_of_source_gives_the_same_image(tmp_path):
    pixels = noise(20, 30)
    data = encode(Image.fromarray(pixels), "PNG")
    file = tmp_path / "photo.png"
    file.write_bytes(data)
    sources = [file, str(file), data, bytearray(data), memoryview(data), io.BytesIO(data), Image.fromarray(pixels)]
    for source in [*sources, pixels]:
        image = load_image(source)
        assert image.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(image), pixels)


def test_a_file_object_that_cannot_be_read_as_bytes_is_refused(tmp_path):
    class NoSeek:
        def __init__(self, content: object) -> None:
            self.content = content

        def read(self, size: int = -1) -> object:
            return self.content

    class Seekable(NoSeek):
        def seek(self, place: int) -> None: ...

    data = encode(Image.new("RGB", (20, 20)), "PNG")
    closed = io.BytesIO(data)
    closed.close()
    with (tmp_path / "written.png").open("wb") as written:
        for source in (closed, written, io.StringIO("text"), NoSeek(data), Seekable("text"), Seekable(None)):
            with pytest.raises(
                UserError, match="no open binary file that can be read from its start, so open one with"
            ):
                load_image(source)
    assert load_image(Seekable(bytearray(data))).size == (20, 20)


def test_a_file_object_stays_open_and_a_pillow_image_stays_as_it_was():
    data = io.BytesIO(encode(Image.new("RGB", (20, 20)), "PNG"))
    load_image(data)
    assert not data.closed
    given = Image.new("RGBA", (20, 20), (10, 20, 30, 0))
    load_image(given).putpixel((0, 0), (1, 2, 3))
    assert given.mode == "RGBA" and given.getpixel((0, 0)) == (10, 20, 30, 0)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(kind, orientation):
    upright = np.zeros((40, 64, 3), np.uint8)
    upright[:20, :32], upright[20:, 32:] = (255, 0, 0), (0, 0, 255)
    # The EXIF table: from 5 on, stored rows run along upright columns; then what the first row and column stand for.
    stored = upright.transpose(1, 0, 2) if orientation > 4 else upright
    if orientation in (3, 4, 6, 7):
        stored = stored[::-1]
    if orientation in (2, 3, 7, 8):
        stored = stored[:, ::-1]
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(Image.fromarray(np.ascontiguousarray(stored)), kind, exif=exif)
    got = np.asarray(load_image(data)).astype(int)
    assert got.shape == upright.shape
    assert np.abs(got - upright).mean() < 12


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_mangled_exif_block_costs_nothing():
    data = encode(Image.new("RGB", (20, 20), "red"), "PNG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    assert load_image(data).getpixel((3, 3)) == (255, 0, 0)


def test_transparency_is_laid_over_white():
    rgba = np.full((20, 20, 4), (200, 0, 0, 255), np.uint8)
    rgba[:10, :, 3], rgba[10:15, :, 3] = 0, 51
    for source in (rgba, encode(Image.fromarray(rgba), "PNG"), Image.fromarray(rgba)):
        image = load_image(source)
        assert [image.getpixel((5, y)) for y in (0, 12, 19)] == [(255, 255, 255), (244, 204, 204), (200, 0, 0)]
    grey = Image.fromarray(np.stack([rgba[..., 0], rgba[..., 3]], -1), mode=None)
    assert grey.mode == "LA"
    assert [load_image(grey).getpixel((5, y))[0] for y in (0, 12, 19)] == [255, 244, 200]
    assert load_image(Image.new("RGBa", (20, 20))).getpixel((0, 0)) == (255, 255, 255)
    assert load_image(Image.new("La", (20, 20))).getpixel((0, 0)) == (255, 255, 255)


def test_a_palette_with_transparency():
    image = Image.new("P", (20, 20), 0)
    image.putpalette([10, 20, 30, 0, 128, 0])
    image.paste(1, (0, 0, 20, 10))
    loaded = load_image(encode(image, "PNG", transparency=0))
    assert loaded.getpixel((0, 0)) == (0, 128, 0) and loaded.getpixel((0, 19)) == (255, 255, 255)
    assert load_image(encode(image, "PNG")).getpixel((0, 19)) == (10, 20, 30)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "TIFF big-endian", "TIFF 32-bit", "TIFF float", "TIFF unit float"])
def test_deep_grey_is_scaled_not_clipped(kind):
    values = RNG.integers(0, 65536, (20, 30), dtype=np.uint16)
    values[0, :2] = 0, 65535
    stored = {
        "TIFF big-endian": values.astype(">u2"),
        "TIFF 32-bit": values.astype(np.int32),
        "TIFF float": values.astype(np.float32),
        "TIFF unit float": (values / 65535).astype(np.float32),
    }.get(kind, values)
    got = np.asarray(load_image(encode(Image.fromarray(stored), kind.split()[0])))
    np.testing.assert_array_equal(got, np.repeat(np.rint(values / 257)[..., None], 3, axis=2))


def test_float_grey_that_is_no_number_is_refused():
    values = np.full((20, 20), np.nan, np.float32)
    assert "finite" in refusal(Image.fromarray(values))
    assert "finite" in refusal(encode(Image.fromarray(values), "TIFF"))


def test_cmyk_one_bit_and_grey():
    cmyk = Image.new("CMYK", (20, 20), (0, 255, 255, 0))
    assert load_image(encode(cmyk, "TIFF")).getpixel((0, 0)) == (255, 0, 0)
    assert np.abs(np.subtract(load_image(encode(cmyk, "JPEG")).getpixel((0, 0)), (255, 0, 0))).max() < 6
    bits = Image.new("1", (20, 20), 1)
    assert load_image(encode(bits, "PNG")).getpixel((0, 0)) == (255, 255, 255)
    grey = RNG.integers(0, 256, (20, 30, 1), dtype=np.uint8)
    for source in (grey, grey[..., 0]):
        np.testing.assert_array_equal(np.asarray(load_image(source)), grey.repeat(3, axis=2))


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_the_first_frame_of_an_animation(kind):
    pages = [Image.new("RGB", (20, 20), colour) for colour in ("red", "lime", "blue")]
    data = encode(pages[0], kind, save_all=True, append_images=pages[1:])
    assert Image.open(io.BytesIO(data)).n_frames == 3
    assert np.abs(np.subtract(load_image(data).getpixel((5, 5)), (255, 0, 0))).max() < 6


def test_refused_files(tmp_path):
    assert "does not exist" in refusal(tmp_path / "missing.jpg")
    assert "folder" in refusal(tmp_path)
    note = tmp_path / "note.jpg"
    note.write_text("this is no photo at all, only words")
    assert "not an image" in refusal(note) and str(note) in refusal(str(note))
    note.write_bytes(b"")
    assert "not an image" in refusal(note)
    refusal("x" * 5000)
    refusal("nul\0in the name")
    refusal(b"")
    refusal(io.StringIO("text"))
    refusal(None)
    # PostScript is a program; reading it would run an interpreter.
    assert "not an image" in refusal(encode(Image.new("RGB", (20, 20)), "EPS"))


def test_an_unreadable_file_is_refused(tmp_path, monkeypatch):
    file = tmp_path / "photo.png"
    file.write_bytes(encode(Image.new("RGB", (20, 20)), "PNG"))

    def denied(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Image, "open", denied)
    assert "Permission denied" in refusal(file)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP"])
def test_truncated_files_are_refused(kind):
    data = encode(Image.fromarray(noise(64, 64)), kind)
    for part in (0.95, 0.5, 0.1):
        refusal(data[: int(len(data) * part)])


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_damaged_files_are_refused_or_read_but_never_crash():
    rng = np.random.default_rng(3)
    for kind in ("JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP"):
        data = np.frombuffer(encode(Image.fromarray(noise(32, 32)), kind), np.uint8)
        for _ in range(40):
            damaged = data.copy()
            damaged[rng.integers(0, len(data), 8)] = rng.integers(0, 256, 8)
            refused = False
            try:
                assert load_image(damaged.tobytes()).mode == "RGB"
            except UserError:
                refused = True
            if refused:
                refusal(damaged.tobytes())


def test_size_limits(monkeypatch):
    for source in (
        np.zeros((15, 40, 3), np.uint8),
        Image.new("RGB", (40, 15)),
        encode(Image.new("L", (15, 15)), "PNG"),
    ):
        assert "at least 16 pixels" in refusal(source)
    assert load_image(Image.new("RGB", (16, 16))).size == (16, 16)

    assert "110 megapixels" in refusal(png_header(20000, 20000))
    with monkeypatch.context() as patch:
        patch.setattr(Image, "MAX_IMAGE_PIXELS", None)
        assert "110 megapixels" in refusal(png_header(20000, 20000))
        assert "110 megapixels" in refusal(np.broadcast_to(np.zeros(3, np.uint8), (20000, 20000, 3)))
    with warnings.catch_warnings(), monkeypatch.context() as patch:
        warnings.simplefilter("error")
        patch.setattr(Image, "MAX_IMAGE_PIXELS", 300)
        load_image(encode(Image.new("RGB", (20, 20)), "PNG"))


def test_refused_arrays():
    for array in (
        np.zeros((20, 20, 3), np.float32),
        np.zeros((20, 20, 2), np.uint8),
        np.zeros((3, 20, 20), np.uint8),
        np.zeros((1, 20, 20, 3), np.uint8),
        np.zeros(20, np.uint8),
    ):
        assert "uint8" in refusal(array)


def test_the_example_photo_is_read_and_prepared():
    image = load_image(EXAMPLE)
    assert image.size == (451, 300)
    first_frame = preprocess(image, 256, 256)
    assert first_frame.shape == (1, 3, 256, 256) and first_frame.dtype == np.float32
    assert -1 <= first_frame.min() < -0.7 and 0.6 < first_frame.max() <= 1


def test_preprocess_by_hand():
    """Two grey levels, doubled: half-pixel centres give 1, 3/4, 1/4, 0 parts of the first; edges are held."""
    pixels = np.zeros((2, 2, 3), np.uint8)
    pixels[0] = 255
    got = preprocess(Image.fromarray(pixels), 4, 4)
    expected = np.broadcast_to(np.float32([1, 0.5, -0.5, -1])[:, None], (4, 4))
    np.testing.assert_allclose(got, np.broadcast_to(expected, (1, 3, 4, 4)), atol=1e-7)


def test_preprocess_does_not_antialias():
    """Shrinking 8 columns to 2 looks at columns 1 and 2, then 5 and 6 only."""
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[:, [1, 2]], pixels[:, [0, 3, 4, 7]] = 255, 99
    got = preprocess(Image.fromarray(pixels), 2, 2)
    np.testing.assert_allclose(got[0, 0], [[1, -1], [1, -1]], atol=1e-7)


def test_sizes_and_offsets_follow_torchvision():
    assert covering_size(300, 451, 256, 256) == (256, 384)
    assert covering_size(451, 300, 256, 256) == (384, 256)
    assert covering_size(3024, 4032, 256, 256) == (256, 341)
    assert [centre_offset(length, 2) for length in (2, 3, 5, 7, 9)] == [0, 0, 2, 2, 4]


def test_a_narrow_photo_covers_the_width_without_black():
    assert covering_size(451, 300, 256, 384) == (577, 384)
    for height, width in ((400, 300), (300, 301), (300, 300), (16, 5000), (5000, 16)):
        for target in ((256, 384), (256, 256), (384, 256), (8, 1024)):
            size = covering_size(height, width, *target)
            assert size[0] >= target[0] and size[1] >= target[1]
    white = preprocess(Image.new("RGB", (100, 300), "white"), 64, 128)
    assert white.shape == (1, 3, 64, 128) and (white == 1).all()


def test_a_window_is_a_cut_of_the_whole_resize():
    pixels = noise(90, 70)
    whole = resize_window(pixels, (64, 50), Window(0, 0, 64, 50))
    np.testing.assert_array_equal(resize_window(pixels, (64, 50), Window(11, 3, 20, 40)), whole[11:31, 3:43])


def test_preprocess_needs_rgb():
    assert "load_image" in refusal(Image.new("L", (20, 20)), lambda image: preprocess(image, 16, 16))


@pytest.mark.slow
@pytest.mark.parametrize(
    "image_size", [(300, 451), (451, 300), (3000, 4000), (64, 48), (16, 16), (256, 256), (37, 2000), (1001, 777)]
)
@pytest.mark.parametrize("target", [(256, 256), (320, 192)])
def test_preprocess_equals_torch(image_size, target):
    torch = pytest.importorskip("torch")
    pixels = noise(*image_size)
    height, width = target
    size = covering_size(*image_size, height, width)
    assert min(size) == height, "the published pipeline would pad this one; not comparable"
    tensor = torch.from_numpy(pixels).permute(2, 0, 1).contiguous().float().div(255)[None]
    tensor = torch.nn.functional.interpolate(tensor, size=size, mode="bilinear", align_corners=False, antialias=False)
    top, left = (round((length - crop) / 2.0) for length, crop in zip(size, target, strict=True))
    expected = tensor[:, :, top : top + height, left : left + width].sub(0.5).div(0.5).numpy()
    got = preprocess(Image.fromarray(pixels), height, width)
    assert np.abs(got - expected).max() <= 1e-6


def test_an_upright_photo_stays_upright_when_it_is_read_again():
    picture = np.zeros((30, 40, 3), np.uint8)
    picture[15:] = 250
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    file = io.BytesIO()
    Image.fromarray(picture[::-1, ::-1]).save(file, "PNG", exif=exif)
    once = load_image(file.getvalue())
    assert np.array_equal(np.asarray(once), picture)
    assert np.array_equal(np.asarray(load_image(once)), picture)


def exif_bomb(entries: int, length: int) -> bytes:
    """A TIFF header whose entries all hold the same `length` bytes."""
    start = 8 + 2 + 12 * entries + 4
    table = b"".join(struct.pack("<HHLL", 0x8000 + number, 7, length, start) for number in range(entries))
    return b"II*\0" + struct.pack("<LH", 8, entries) + table + bytes(4) + bytes(length)


@pytest.mark.skipif(os.name != "posix", reason="POSIX kinds of files")
def test_pipes_and_devices_are_refused_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    assert "is a pipe" in refusal(tmp_path / "pipe.png")
    assert "is a device" in refusal("/dev/zero") and "is a device" in refusal(Path("/dev/null"))
    with open("/dev/zero", "rb") as zero:  # noqa: PTH123
        assert "pipe or a device" in refusal(zero)
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb") as pipe:
        assert "pipe or a device" in refusal(pipe)
    os.close(writer)


@pytest.mark.slow
def test_a_file_over_its_limit_is_refused(tmp_path):
    with (tmp_path / "a.png").open("wb") as file:
        file.truncate(1 << 40)
    assert "more than 512 MiB" in refusal(tmp_path / "a.png")
    with (tmp_path / "a.png").open("rb") as file:
        assert "more than 512 MiB" in refusal(file)


def test_long_pictures_are_refused():
    assert load_image(Image.new("RGB", (1600, 16))).size == (1600, 16)
    for source in (Image.new("RGB", (1617, 16)), np.zeros((1617, 16, 3), np.uint8), png_header(100_000, 50)):
        assert "longer than 100:1" in refusal(source)


def test_pictures_whose_decoding_grows_may_have_fewer_pixels():
    """Headers alone: nothing is decoded before the refusal."""
    image = Image.new("RGB", (64, 64))
    progressive = encode(image, "JPEG", progressive=True, subsampling=0)
    plain = encode(image, "JPEG", subsampling=0)

    def enlarged(data: bytes, marker: bytes) -> bytes:
        place = data.index(marker) + 5
        return data[:place] + struct.pack(">HH", 8000, 10000) + data[place + 4 :]

    assert "62.9 megapixels, the most for a picture of its kind" in refusal(enlarged(progressive, b"\xff\xc2"))
    with Image.open(io.BytesIO(enlarged(plain, b"\xff\xc0"))) as opened:
        check_decoding(opened, 0, False, "the image")
    assert "megapixels, the most" in refusal(b"P3 5000 5000 255\n")
    assert "megapixels, the most" in refusal(b"P6 5000 5000 77\n")
    assert load_image(progressive).size == load_image(plain).size == (64, 64)


def test_baseline_scans_of_single_components_count_as_progressive():
    data = encode(Image.new("RGB", (64, 64)), "JPEG")
    scan = data.index(b"\xff\xda")
    assert jpeg_layout(io.BytesIO(data)) == (0, False)
    single = data[: scan + 4] + b"\x01" + data[scan + 5 :]
    assert jpeg_layout(io.BytesIO(single)) == (0, True)
    assert jpeg_layout(io.BytesIO(encode(Image.new("RGB", (64, 64)), "PNG"))) == (0, False)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_metadata_that_grows_when_it_is_read():
    """Entries that all point to the same bytes: gigabytes, were they read."""
    image = Image.new("RGB", (64, 64), "red")
    bomb = exif_bomb(20_000, 2_000_000)
    began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert load_image(encode(image, "PNG", exif=b"Exif\0\0" + bomb)).getpixel((3, 3)) == (255, 0, 0)
    assert load_image(encode(image, "WEBP", exif=b"Exif\0\0" + bomb)).size == (64, 64)
    segments = b"".join(
        b"\xff\xe1" + struct.pack(">H", 2 + 6 + len(part)) + b"Exif\0\0" + part
        for part in (bomb[place : place + 60_000] for place in range(0, len(bomb), 60_000))
    )
    jpeg = encode(image, "JPEG")
    assert "EXIF" in refusal(jpeg[:2] + segments + jpeg[2:])
    assert "readable" in refusal(bomb) or "not an image" in refusal(bomb)
    if "AVIF" in Image.SAVE:
        avif = encode(image, "AVIF", exif=exif_bomb(1, 100))
        assert load_image(avif).size == (64, 64)
        assert "EXIF" in refusal(avif + bomb)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - began < 500_000  # KiB


def test_text_bombs_of_png():
    image = Image.new("RGB", (64, 64))
    text = PngImagePlugin.PngInfo()
    text.add_text("comment", "x" * 50_000_000, zip=True)
    refusal(encode(image, "PNG", pnginfo=text))


def test_many_frames_cost_nothing():
    pages = [Image.new("P", (64, 64), number % 200) for number in range(300)]
    for kind in ("GIF", "TIFF"):
        data = encode(pages[0], kind, save_all=True, append_images=pages[1:])
        assert load_image(data).size == (64, 64)


def test_strips_change_nothing(monkeypatch):
    rng = np.random.default_rng(5)
    rgba = Image.fromarray(rng.integers(0, 256, (61, 47, 4), dtype=np.uint8))
    pictures = [rgba, rgba.convert("RGB"), rgba.convert("LA"), rgba.convert("CMYK"), rgba.convert("P")]
    pictures += [Image.fromarray(rng.random((61, 47), np.float32)), rgba.convert("1"), rgba.convert("YCbCr")]
    pictures += [Image.fromarray(rng.integers(0, 65536, (61, 47), dtype=np.uint16))]
    whole = [np.asarray(load_image(picture)) for picture in pictures]
    monkeypatch.setattr(image_module, "_STRIP_PIXELS", 100)
    for picture, expected in zip(pictures, whole, strict=True):
        np.testing.assert_array_equal(np.asarray(load_image(picture)), expected)
    np.testing.assert_array_equal(np.asarray(load_image(pictures[1])), np.asarray(pictures[1]))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="peak memory as Linux counts it")
@pytest.mark.parametrize(("kind", "turned"), [("PNG", True), ("JPEG", False)])
def test_the_largest_photos_take_less_than_a_gibibyte(tmp_path, kind, turned):
    """One that is turned, and one whose decoder holds all coefficients."""
    pixels = MAX_PIXELS if turned else 62_800_000
    exif = Image.Exif()
    exif[0x0112] = 6
    grey = Image.new("L", (8000, pixels // 8000), 77)
    options = {"exif": exif, "compress_level": 1} if turned else {"progressive": True}
    picture = grey.convert("L" if turned else "RGB")
    picture.save(tmp_path / "a", kind, **options)
    del grey, picture
    program = (
        "import sys; from consisti2v_rt.runtime.media.image import load_image, preprocess; "
        "preprocess(load_image(sys.argv[1]), 256, 256); "
        "print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])"
    )
    done = subprocess.run([sys.executable, "-c", program, tmp_path / "a"], capture_output=True, text=True, check=True)
    assert 400_000 < int(done.stdout) < 1 << 20
