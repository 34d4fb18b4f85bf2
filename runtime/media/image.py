"""Image loading and preprocessing: any photo -> RGB image -> the array that the image encoder expects."""

from __future__ import annotations

import io
import math
import os
import stat
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from typing import BinaryIO, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from ...errors import UserError
from ..files.guarded_read import open_regular
from .image_budget import (
    MAX_DECODING_BYTES,
    MAX_EXIF_BYTES,
    MAX_FILE_BYTES,
    WHOLE_FILE,
    MeteredBytes,
    MeteredFile,
    check_decoding,
    check_size,
    embedded_exif_bytes,
    exif_is_small,
    jpeg_layout,
    too_large,
)

FloatArray: TypeAlias = npt.NDArray[np.float32]
ImageSource: TypeAlias = (
    "str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO | Image.Image | npt.NDArray[np.uint8]"
)

_STRIP_PIXELS = 1 << 20
# Photo formats only: Pillow's EPS, for one, runs an outside program on the file. HEIF is there if a plug-in is.
_FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "AVIF", "HEIF", "TIFF", "GIF", "BMP", "DIB", "PPM", "JPEG2000")
_NO_FILE = "is no open binary file that can be read from its start"
_FORMATS_ADVICE = "use a JPEG, PNG, WebP, AVIF, TIFF, GIF or BMP photo"


class Window(NamedTuple):
    """A rectangle in pixels of an image."""

    top: int
    left: int
    height: int
    width: int


def load_image(source: ImageSource) -> Image.Image:
    """Read a photo as an upright, opaque 8-bit RGB image; the source is left as it was.

    ``source`` is a path, the bytes of an image file, a binary file object, a Pillow image, or a uint8 array
    [h, w], [h, w, 1] (grey), [h, w, 3] (RGB) or [h, w, 4] (RGB and opacity). EXIF rotation is applied, transparency is
    laid over white, 16-bit and float grey is scaled to 8 bits, and of an animated file the first frame is taken (of a
    Pillow image the frame it stands at).

    Raises :class:`UserError` for a missing or unreadable file, a pipe or device, a file of more than 512 MiB, a file
    that is no photo or is cut short, a side under 16 pixels, a shape longer than 100:1, and more than 110 megapixels.
    Pictures whose decoding takes more than 8 bytes a pixel may have fewer, so that reading any takes less than 1 GiB.
    """
    if isinstance(source, np.ndarray):
        _check_array(source)
        squeezed = source[:, :, 0] if source.ndim == 3 and source.shape[2] == 1 else source
        return _to_rgb(Image.fromarray(np.ascontiguousarray(squeezed)))
    if isinstance(source, Image.Image):
        check_size(source.width, source.height, "the image")
        return _decode(source, "the image")
    name = _name_of(source)
    with _opened(source, name) as (file, in_memory), closing(_open(file, in_memory, name)) as image:
        return _decode(image, name, owned=True)


def check_image(source: ImageSource) -> tuple[int, int] | None:
    """Refuse at once what :func:`load_image` would refuse before it decodes, for a file, bytes or an array. A file
    object is left alone, for it may be read only once, and a Pillow image is open already.

    Returns:
        Width and height of a file's picture, as its header says; None for what is no file.
    """
    if isinstance(source, np.ndarray):
        _check_array(source)
    elif isinstance(source, str | os.PathLike | bytes | bytearray | memoryview):
        name = _name_of(source)
        with _opened(source, name) as (file, in_memory), closing(_open(file, in_memory, name)) as image:
            return image.width, image.height
    return None


def image_size(source: ImageSource) -> tuple[int, int]:
    """Height and width of a photo as :func:`load_image` gives it, upright; files and bytes are not decoded.

    Raises:
        UserError: as :func:`check_image`, or a file object, which may be read only once.
    """
    check_image(source)
    if isinstance(source, np.ndarray):
        return int(source.shape[0]), int(source.shape[1])
    if isinstance(source, Image.Image):
        width, height, turned = *source.size, _orientation(source) >= 5
    elif isinstance(source, str | os.PathLike | bytes | bytearray | memoryview):
        name = _name_of(source)
        with _opened(source, name) as (file, in_memory), closing(_open(file, in_memory, name)) as image:
            width, height, turned = *image.size, _orientation(image) >= 5
    else:
        raise UserError("the size of an open file is not known before it is read: pass its bytes, or a path.")
    return (width, height) if turned else (height, width)


def preprocess(image: Image.Image, height: int, width: int) -> FloatArray:
    """RGB image -> float32 [1, 3, height, width] in [-1, 1], the published preprocessing.

    RGB / 255, the smaller side resized to ``height`` (bilinear, half-pixel centres, no antialiasing), the centre
    ``height`` x ``width`` cropped, (x - 0.5) / 0.5. The one departure: where that resized image is narrower than
    ``width`` the published pipeline fills up with black; here the image is scaled further, until it covers the width.

    Source: ``ConditionalAnimationPipeline.__call__`` of https://github.com/TIGER-AI-Lab/ConsistI2V.
    """
    pixels = rgb_pixels(image)
    size = covering_size(pixels.shape[0], pixels.shape[1], height, width)
    crop = Window(centre_offset(size[0], height), centre_offset(size[1], width), height, width)
    return normalise(resize_window(pixels, size, crop))[None]


def rgb_pixels(image: Image.Image) -> npt.NDArray[np.uint8]:
    """The uint8 [h, w, 3] pixels of an RGB image; :class:`UserError` for any other mode."""
    if image.mode != "RGB":
        raise UserError(f"the image has mode {image.mode} where RGB is needed, so pass it through load_image first.")
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    # np.asarray() would hold the pixels twice while it copies them.
    for top, strip in _strips(image):
        pixels[top : top + strip.height] = np.asarray(strip)
    return pixels


def covering_size(image_height: int, image_width: int, height: int, width: int) -> tuple[int, int]:
    """(height, width) to resize to: smaller side = ``height`` by torchvision's rule, more if ``width`` needs it."""
    short, long = sorted((image_height, image_width))
    scaled = int(height * long / short)
    size = (height, scaled) if image_height <= image_width else (scaled, height)
    if size[1] < width:
        size = (int(width * image_height / image_width), width)
    return size


def centre_offset(length: int, crop: int) -> int:
    """First row or column of a centre crop, rounded as torchvision's CenterCrop does (half to even)."""
    return round((length - crop) / 2.0)


def normalise(pixels: FloatArray) -> FloatArray:
    """float32 [h, w, 3] in [0, 1] -> contiguous float32 [3, h, w] in [-1, 1]."""
    half = np.float32(0.5)
    return np.ascontiguousarray(((pixels - half) / half).transpose(2, 0, 1))


def resize_window(pixels: npt.NDArray[np.generic], size: tuple[int, int], window: Window) -> FloatArray:
    """Bilinear resize of [H, W, C] to ``size``, computed inside ``window`` of the result only: float32 [h, w, C].

    Same rule as ``torch.nn.functional.interpolate(mode="bilinear", align_corners=False, antialias=False)``. uint8
    pixels are read as value / 255. Only the rows and columns that the window touches are converted to float.
    """
    above, below, down = _neighbours(pixels.shape[0], size[0], window.top, window.height)
    left, right, across = _neighbours(pixels.shape[1], size[1], window.left, window.width)
    down, across = down[:, None, None], across[None, :, None]

    def as_float(lines: npt.NDArray[np.generic]) -> FloatArray:
        values = lines.astype(np.float32)
        return values / np.float32(255) if pixels.dtype == np.uint8 else values

    def row(rows: npt.NDArray[np.intp]) -> FloatArray:
        lines = pixels.take(rows, axis=0)
        return as_float(lines.take(left, axis=1)) * (1 - across) + as_float(lines.take(right, axis=1)) * across

    return row(above) * (1 - down) + row(below) * down


def _neighbours(
    length: int, resized: int, start: int, count: int
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp], FloatArray]:
    """For resized positions start .. start+count-1: the two source indices and the float32 weight of the second."""
    # Rounded to float32 where torch rounds, since at the far end of a large photo that moves the weight by 1e-4: the
    # scale, and the position once, as its CPU kernels compile it to a fused multiply-add (float64 holds the product).
    scale = np.float64(np.float32(length) / np.float32(resized))
    position = ((np.arange(start, start + count) + 0.5) * scale - 0.5).astype(np.float32)
    position = np.maximum(position, np.float32(0))
    first = np.minimum(position.astype(np.intp), length - 1)
    weight = np.clip(position - first.astype(np.float32), np.float32(0), np.float32(1))
    return first, np.minimum(first + 1, length - 1), weight


def _name_of(source: object) -> str:
    return f'"{os.fsdecode(source)}"' if isinstance(source, str | os.PathLike) else "the image"


@contextmanager
def _opened(
    source: str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO, name: str
) -> Iterator[tuple[BinaryIO, int]]:
    """The file to decode, and how many bytes of it are in memory. A file object of the caller stays open."""
    try:
        if isinstance(source, str | os.PathLike):
            with open_regular(source) as file:
                size = os.fstat(file.fileno()).st_size
                _check_file_size(size)
                with io.BufferedReader(MeteredFile(os.dup(file.fileno()), size), 1 << 16) as metered:
                    yield metered, 0
            return
        content = bytes(source) if isinstance(source, bytes | bytearray | memoryview) else _content(source)
        _check_file_size(len(content))
    except UserError:
        raise
    except (ValueError, TypeError, AttributeError) as error:
        fault = str(error) if isinstance(error, ValueError) else "is no source of an image"
        advice = {
            _NO_FILE: f"{_NO_FILE}, so open one with open(path, 'rb'), or pass its bytes",
            "is a folder, not a regular file": "is a folder, so give the path of one image file in it",
            "does not exist": "does not exist, so check the path of the image",
        }
        raise UserError(f"{name} {advice.get(fault, f'{fault}, so {_FORMATS_ADVICE}')}.") from None
    yield MeteredBytes(content), len(content)


def _check_file_size(size: int) -> None:
    if size > MAX_FILE_BYTES:
        raise ValueError(f"has more than {MAX_FILE_BYTES >> 20} MiB")


def _content(file: BinaryIO) -> bytes:
    """All of a file object, of which a pipe or a device is not waited for."""
    try:
        descriptor = file.fileno()
    except (AttributeError, OSError, ValueError):
        descriptor = None
    if descriptor is not None and not stat.S_ISREG(os.fstat(descriptor).st_mode):
        raise ValueError("is a pipe or a device, not a regular file")
    try:
        file.seek(0)
        content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ValueError(_NO_FILE if error.strerror is None else f"cannot be read ({error.strerror})") from None
    except (AttributeError, TypeError, ValueError):
        raise ValueError(_NO_FILE) from None
    if not isinstance(content, bytes | bytearray | memoryview):
        raise ValueError(_NO_FILE)
    return bytes(content)


def _open(file: BinaryIO, in_memory: int, name: str) -> Image.Image:
    """The picture, not decoded yet; what it says of itself is within the budget."""
    Image.init()
    formats = [known for known in _FORMATS if known in Image.OPEN]
    try:
        exif, multi_scan = jpeg_layout(file)
        head = file.read(16)
        file.seek(0)
        if head[4:8] == b"ftyp":
            size = file.seek(0, os.SEEK_END)
            file.seek(0)
            exif = embedded_exif_bytes(file.read()) // 64 if size <= MAX_DECODING_BYTES else MAX_FILE_BYTES
            file.seek(0)
        if exif > MAX_EXIF_BYTES:
            raise UserError(f"{name} has an EXIF block of an impossible size, so save it again without metadata.")
        with warnings.catch_warnings():
            # Of sizes, which are checked here, and of metadata, which is not used.
            warnings.simplefilter("ignore")
            image = Image.open(file, formats=formats)
        if not in_memory and image.format in WHOLE_FILE:
            in_memory = file.seek(0, os.SEEK_END)
        check_decoding(image, in_memory, multi_scan, name)
        return image
    except UserError:
        raise
    except Exception as error:  # a hostile header may raise anything at all inside a decoder
        refusal = f"{name} is not a readable image, so {_FORMATS_ADVICE}."
        if isinstance(error, Image.DecompressionBombError):
            refusal = too_large(name)
        elif isinstance(error, UnidentifiedImageError):
            refusal = f"{name} is not an image in a format that can be read here, so {_FORMATS_ADVICE}."
        elif isinstance(error, OSError) and error.strerror is not None:  # from the operating system
            refusal = f"{name} cannot be read ({error.strerror}), so check the file and its permissions."
        raise UserError(refusal) from None


def _decode(image: Image.Image, name: str, *, owned: bool = False) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image.load()
        # After load: the TIFF reader turns the image itself and drops the tag.
        orientation = _orientation(image)
        rgb = _to_rgb(image)
        if owned:
            image.close()
        if orientation != 1:
            rgb.getexif()[ExifTags.Base.Orientation] = orientation
            ImageOps.exif_transpose(rgb, in_place=True)
            rgb.info = {}
        return rgb
    except UserError:
        raise
    except Exception:  # broken data may raise anything at all inside a decoder
        raise UserError(
            f"{name} is damaged, cut short or of an unusual kind and cannot be decoded, "
            "so save or download it again as JPEG or PNG."
        ) from None


def _orientation(image: Image.Image) -> int:
    try:
        return 1 if not exif_is_small(image.info) else int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # a mangled EXIF block must not cost the user a photo whose pixels are fine
        return 1


def _check_array(array: npt.NDArray[np.generic]) -> None:
    if array.dtype != np.uint8 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (1, 3, 4))):
        raise UserError(
            f"an image array must be uint8 with shape [h, w, 3], [h, w, 4], [h, w, 1] or [h, w], not {array.dtype} "
            f"{list(array.shape)}, so convert it to 0..255 and put the channels last."
        )
    check_size(array.shape[1], array.shape[0], "the image array")


def _strips(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """The picture in strips of about a megapixel, each with the number of its first row."""
    rows = max(1, _STRIP_PIXELS // image.width)
    for top in range(0, image.height, rows):
        yield top, image.crop((0, top, image.width, min(top + rows, image.height)))


def _to_rgb(image: Image.Image) -> Image.Image:
    """A new RGB image; strip by strip, for a conversion as a whole would hold several copies."""
    convert = _strip_to_rgb
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        convert = partial(_deep_grey_to_rgb, full_scale=_full_scale(image))
    rgb = Image.new("RGB", image.size)
    for top, strip in _strips(image):
        rgb.paste(convert(strip), (0, top))
    return rgb


def _strip_to_rgb(image: Image.Image) -> Image.Image:
    premultiplied = {"La": "LA", "RGBa": "RGBA"}
    if image.mode in premultiplied:
        image = image.convert(premultiplied[image.mode])
    if image.has_transparency_data:
        coloured = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), coloured).convert("RGB")
    return image.convert("RGB")


def _full_scale(image: Image.Image) -> float:
    """The value of white in grey of more than 8 bits.

    16-bit modes have the full scale 65535. I (32-bit integers) and F (floats) do not say theirs: the smallest of
    1 (F only), 255 and 65535 that holds every value is taken, beyond that the largest value.
    """
    if image.mode not in ("I", "F"):
        return 65535.0
    largest = -math.inf
    for _, strip in _strips(image):
        values = np.asarray(strip)
        if not np.isfinite(values).all():
            raise UserError(
                "the image holds values that are not finite numbers, so save it again as 8-bit grey or RGB."
            )
        largest = max(largest, float(values.max()))
    if image.mode == "I" and image.format == "PNG":
        return 65535.0  # how Pillow before 11 opens 16-bit PNG
    scales = (1.0, 255.0, 65535.0) if image.mode == "F" else (255.0, 65535.0)
    return next((scale for scale in scales if largest <= scale), largest)


def _deep_grey_to_rgb(image: Image.Image, full_scale: float) -> Image.Image:
    values = np.asarray(image).astype(np.float64).clip(0, full_scale)
    return Image.fromarray(np.rint(values * (255.0 / full_scale)).astype(np.uint8)).convert("RGB")
