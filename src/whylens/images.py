"""Reading pictures of every common kind into RGB, with bounded memory and errors that name the file."""

from __future__ import annotations

import difflib
import io
import os
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, JpegImagePlugin, UnidentifiedImageError

from whylens.canonical import content_hash
from whylens.errors import InputError, PictureError

ENDINGS = frozenset(
    {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".jpe", ".jfif"}
)
# Only formats that are decoded in this process: Pillow would also hand EPS to Ghostscript.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")

# JPEGs decode at a fraction of their size down to this short side: bounded memory, and every classifier's detail.
DRAFT_SIDE = 1536
# A JPEG may have 32,768 x 32,768 pixels: larger headers are decompression bombs rather than photographs.
MAX_PIXELS = 2**30
# Everything else is decoded whole, at 4 bytes a pixel: half a gigabyte.
MAX_WHOLE_PIXELS = 2**27
# The WebP decoder holds four such copies at once.
MAX_WEBP_PIXELS = 2**26
# A progressive JPEG keeps the coefficients of the whole picture, whatever the size it is decoded at.
MAX_COEFFICIENT_BYTES = 5 * 2**28
MAX_FILE_BYTES = 2**29

_PIXEL_LIMITS = {"JPEG": MAX_PIXELS, "MPO": MAX_PIXELS, "WEBP": MAX_WEBP_PIXELS}

_BAND_PIXELS = 2**22
_UPRIGHT = {
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a),
}
# Pillow's pixel limit is a global of its module, so that only one thread at a time may lift it.
_limit_lock = threading.Lock()


@dataclass(frozen=True, eq=False)
class Picture:
    """A decoded picture: uint8 RGB (H, W, 3), where it came from, and the sha256 of the file's bytes."""

    array: np.ndarray
    name: str
    sha256: str

    def as_pil(self) -> Image.Image:
        """The same as a PIL image."""
        return Image.fromarray(self.array)


def read_picture(source: str | os.PathLike[str] | bytes | Image.Image | np.ndarray | Picture) -> Picture:
    """Read one picture as RGB.

    Args:
        source: a path, the bytes of a file, a PIL image, or an array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4),
            uint8 or float in [0, 1].

    EXIF rotation is applied, transparency is put on white, CMYK is converted, and of an animated file the first frame
    is taken (of a PIL image the frame it stands at). Sixteen-bit grey levels span [0, 65535]; 32-bit integers that
    leave this range are stretched; floats are read in the first of [0, 1], [0, 255], [0, 65535] that holds them, else
    stretched.

    Memory stays below about 1.5 GB: a JPEG with a short side of 3,072 pixels or more is decoded at a half, quarter or
    eighth of its size, and every picture with a long side over 6,144 pixels is reduced to a short side of 1,536 to
    3,071 pixels.

    Raises:
        PictureError: not a picture, truncated, empty, a file over 512 MiB, or too many pixels: over 2**30 for a JPEG,
            over 2**26 for WebP, over 2**27 (11,585 x 11,585) for every other format, since only JPEGs decode at a
            reduced size.
    """
    if isinstance(source, Picture):
        return source
    if isinstance(source, np.ndarray):
        array = _from_array(source)
        return Picture(array, "array", content_hash(array))
    if isinstance(source, Image.Image):
        name = _printable(Path(getattr(source, "filename", "") or "image").name)
        _refuse_pixels(source.size, MAX_WHOLE_PIXELS, name)
        array = _to_rgb(source, name)
        return Picture(array, name, content_hash(array))
    if isinstance(source, (bytes, bytearray, memoryview)):
        data = bytes(source)
        return Picture(_decode(data, "The picture"), "bytes", content_hash(data))
    if not isinstance(source, (str, os.PathLike)):
        raise PictureError(
            "A picture is given as a path, the bytes of a file, a PIL image or a NumPy array; "
            f"this is a {type(source).__name__}."
        )
    path = Path(source)
    data = _read_bytes(path)
    return Picture(_decode(data, _printable(str(path))), _printable(path.name), content_hash(data))


def find_pictures(paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> list[Path]:
    """Pictures named by files and folders (searched through, sorted by name); hidden files are passed over.

    A file that is named itself is taken whatever its ending. A picture that is reached twice is listed once.

    Raises:
        InputError: for a path that does not exist or may not be read, or when nothing was found.
    """
    given = [Path(p) for p in ([paths] if isinstance(paths, (str, os.PathLike)) else paths)]
    found: list[Path] = []
    for path in given:
        try:
            if path.is_dir():
                found += sorted(_pictures_in(path))
                continue
            exists = path.exists()
        except (OSError, ValueError) as error:
            raise InputError(f"Could not read {_printable(str(path))!r}: {_reason(error)}.") from error
        if not exists:
            raise InputError(f"There is no file or folder {_printable(str(path))!r}.{_similar(path)}")
        found.append(path)
    if not found:
        names = ", ".join(repr(_printable(str(p))) for p in given) or "nothing"
        raise InputError(f"No pictures in {names}. Accepted endings: {', '.join(sorted(ENDINGS))}.")
    first: dict[str, Path] = {}
    for path in found:
        # Not resolve(): two links to one picture are two pictures of the folder.
        first.setdefault(os.path.abspath(path), path)  # noqa: PTH100
    return list(first.values())


def _pictures_in(folder: Path) -> Iterable[Path]:
    os.listdir(folder)  # noqa: PTH208 - rglob would pass over a folder that may not be read
    for path in folder.rglob("*"):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.suffix.lower() in ENDINGS and not hidden and path.is_file():
            yield path


def _read_bytes(path: Path) -> bytes:
    shown = _printable(str(path))
    try:
        with path.open("rb") as file:
            # Read rather than asked for: a device or pipe has no size.
            data = file.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        raise PictureError(f"There is no picture {shown!r}.{_similar(path)}") from None
    except IsADirectoryError:
        raise PictureError(f"{shown} is a folder, not a picture.") from None
    except (OSError, ValueError) as error:
        raise PictureError(f"Could not read {shown}: {_reason(error)}.") from error
    if len(data) > MAX_FILE_BYTES:
        raise PictureError(f"{shown} is larger than {MAX_FILE_BYTES >> 20} MiB, the most that is read.")
    return data


def _decode(data: bytes, name: str) -> np.ndarray:
    if not data:
        raise PictureError(f"{name} is empty (0 bytes).")
    with _open(data, name) as image:
        _refuse_pixels(image.size, _PIXEL_LIMITS.get(image.format or "", MAX_WHOLE_PIXELS), name)
        if isinstance(image, JpegImagePlugin.JpegImageFile):
            _refuse_coefficients(image, name)
            if min(image.size) > DRAFT_SIDE:
                image.draft(None, (DRAFT_SIDE, DRAFT_SIDE))
        return _to_rgb(image, name)


def _open(data: bytes, name: str) -> Image.Image:
    with _limit_lock:
        pillow_limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(io.BytesIO(data), formats=FORMATS)
        except UnidentifiedImageError:
            kind = " It looks like HEIC or AVIF; convert it to JPEG." if data[4:8] == b"ftyp" else ""
            raise PictureError(
                f"{name} is not a picture that can be read (it starts with {data[:8]!r}).{kind} "
                "Accepted: JPEG, PNG, WebP, BMP, GIF, TIFF, PPM."
            ) from None
        except Exception as error:
            raise _damaged(name, error) from error
        finally:
            Image.MAX_IMAGE_PIXELS = pillow_limit


def _refuse_pixels(size: tuple[int, int], limit: int, name: str) -> None:
    width, height = size
    if width * height <= limit:
        return
    advice = "Make it smaller first."
    if limit < MAX_PIXELS:
        advice = f"Make it smaller first, or convert it to JPEG, which is read up to {MAX_PIXELS / 1e6:,.0f} million."
    raise PictureError(
        f"{name} has {width:,} x {height:,} pixels ({width * height / 1e6:,.0f} million); "
        f"its format is read up to {limit / 1e6:,.0f} million. {advice}"
    )


def _refuse_coefficients(image: Image.Image, name: str) -> None:
    if not image.info.get("progressive"):
        return
    samplings = [(layer[1], layer[2]) for layer in getattr(image, "layer", [])] or [(1, 1)] * 3
    full = max(h for h, _ in samplings) * max(v for _, v in samplings)
    needed = 2 * image.width * image.height * sum(h * v for h, v in samplings) // max(full, 1)
    if needed > MAX_COEFFICIENT_BYTES:
        raise PictureError(
            f"{name} is a progressive JPEG of {image.width:,} x {image.height:,} pixels, and reading it would take "
            f"{needed / 1e9:.1f} GB. Save it as a baseline JPEG, or make it smaller first."
        )


def _to_rgb(image: Image.Image, name: str) -> np.ndarray:
    """Band by band, so that conversions never hold a second copy of a large picture."""
    try:
        # A decoder fed with damaged bytes may raise almost anything.
        image.load()
        width, height = image.size
        extremes = image.getextrema() if image.mode in ("I", "F") else None
    except Exception as error:
        raise _damaged(name, error) from error
    if width == 0 or height == 0:
        raise PictureError(f"{name} has no pixels ({width} x {height}).")
    factor = min(width, height) // DRAFT_SIDE if max(width, height) > 4 * DRAFT_SIDE else 1
    factor = max(factor, 1)
    rows = max(_BAND_PIXELS // width // factor, 1) * factor
    out = np.empty((-(-height // factor), -(-width // factor), 3), np.uint8)
    for top in range(0, height, rows):
        whole = rows >= height
        band = image if whole else image.crop((0, top, width, min(top + rows, height)))
        rgb = _band_to_rgb(band, extremes, name)
        if factor > 1:
            rgb = rgb.reduce(factor)
        out[top // factor : top // factor + rgb.height] = np.asarray(rgb)
    turn = _UPRIGHT.get(_orientation(image))
    return out if turn is None else np.ascontiguousarray(turn(out))


def _band_to_rgb(band: Image.Image, extremes: object, name: str) -> Image.Image:
    if band.mode.startswith("I") or band.mode == "F":
        return Image.fromarray(_grey_levels(np.asarray(band), extremes, name)).convert("RGB")
    if band.mode == "La":
        band = band.convert("LA")
    if band.mode in ("RGBA", "LA", "PA", "RGBa") or "transparency" in band.info:
        rgba = band.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, (255, 255, 255, 255)), rgba).convert("RGB")
    try:
        return band.convert("RGB")
    except ValueError as error:
        raise PictureError(
            f"{name} has the colour mode {band.mode!r}, which is not converted. Save it as RGB."
        ) from error


def _grey_levels(values: np.ndarray, extremes: object, name: str) -> np.ndarray:
    low, high = 0.0, 65535.0
    if isinstance(extremes, tuple):
        if not np.isfinite(values).all():
            raise PictureError(f"{name} has NaN or infinite values.")
        low, high = float(extremes[0]), float(extremes[1])
        ranges = (1.0, 255.0, 65535.0) if values.dtype.kind == "f" else (65535.0,)
        low, high = next(((0.0, top) for top in ranges if low >= 0 and high <= top), (low, high))
    scaled = (values.astype(np.float64) - low) * (255.0 / ((high - low) or 1.0))
    return scaled.round().clip(0, 255).astype(np.uint8)


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:
        # The pixels are sound; metadata that cannot be parsed says nothing about rotation.
        return 1


def _from_array(array: np.ndarray) -> np.ndarray:
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4) or 0 in array.shape:
        raise PictureError(
            "An array picture must have the shape (H, W), (H, W, 1), (H, W, 3) or (H, W, 4); "
            f"this one has {array.shape}."
        )
    if array.dtype.kind not in "buif":
        raise PictureError(f"An array picture must be uint8 or float; this one is {array.dtype}.")
    if array.dtype != np.uint8:
        values = array.astype(np.float64)
        if not np.isfinite(values).all():
            raise PictureError("An array picture must be finite; this one has NaN or infinite values.")
        if values.min() < 0 or values.max() > 1:
            raise PictureError(
                f"A {array.dtype} array picture must lie in [0, 1]; this one spans "
                f"[{values.min():g}, {values.max():g}]. Convert values of 0 to 255 to uint8."
            )
        array = (values * 255).round().astype(np.uint8)
    if array.shape[2] == 1:
        array = np.repeat(array, 3, axis=2)
    if array.shape[2] == 4:
        alpha = array[..., 3:].astype(np.float64) / 255
        array = (array[..., :3] * alpha + 255 * (1 - alpha)).round().astype(np.uint8)
    return np.array(array, order="C")


def _damaged(name: str, error: Exception) -> PictureError:
    return PictureError(f"{name} is damaged or truncated: {str(error).rstrip('.') or type(error).__name__}.")


def _reason(error: OSError | ValueError) -> str:
    return (isinstance(error, OSError) and error.strerror) or str(error)


def _printable(name: str) -> str:
    """Bytes of a file name that are not UTF-8 replaced, so that the name can be shown and stored."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _similar(path: Path) -> str:
    try:
        neighbours = [p.name for p in path.parent.iterdir()]
    except (OSError, ValueError):
        return ""
    near = difflib.get_close_matches(path.name, neighbours, n=1, cutoff=0.6)
    return f" Did you mean {_printable(near[0])!r}?" if near else ""
