import io
import random
import struct
import subprocess
import sys
import threading
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from whylens import images
from whylens.errors import InputError, PictureError, WhylensError
from whylens.images import Picture, find_pictures, read_picture


def encoded(image, fmt, **options):
    buffer = io.BytesIO()
    image.save(buffer, fmt, **options)
    return buffer.getvalue()


def ramp(height=24, width=36):
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 255 // (width - 1), y * 255 // (height - 1), (x + y) * 3 % 256], axis=2).astype(np.uint8)


@pytest.mark.parametrize("fmt", ["PNG", "BMP", "PPM", "TIFF"])
def test_lossless_formats_keep_every_value(fmt):
    picture = read_picture(encoded(Image.fromarray(ramp()), fmt))
    np.testing.assert_array_equal(picture.array, ramp())
    assert picture.array.dtype == np.uint8
    assert picture.array.flags.writeable


def test_lossy_formats_come_close():
    for fmt, options in (("JPEG", {"quality": 95, "subsampling": 0}), ("WEBP", {"quality": 95})):
        array = read_picture(encoded(Image.fromarray(ramp()), fmt, **options)).array
        assert np.abs(array.astype(int) - ramp()).mean() < 6, fmt


def test_one_pixel():
    for fmt in ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"):
        assert read_picture(encoded(Image.new("RGB", (1, 1), (255, 255, 255)), fmt)).array.shape == (1, 1, 3)


# Bad files


def test_zero_bytes(tmp_path):
    file = tmp_path / "empty.jpg"
    file.write_bytes(b"")
    with pytest.raises(PictureError, match=r"empty\.jpg is empty \(0 bytes\)"):
        read_picture(file)


def test_not_a_picture(tmp_path):
    file = tmp_path / "notes.png"
    file.write_text("dear diary")
    with pytest.raises(PictureError, match=r"notes\.png is not a picture.*dear dia.*Accepted: JPEG, PNG"):
        read_picture(file)


def test_heic_is_named():
    with pytest.raises(PictureError, match="HEIC or AVIF; convert it to JPEG"):
        read_picture(b"\x00\x00\x00\x18ftypheic" + bytes(64))


def test_postscript_never_reaches_an_interpreter():
    with pytest.raises(PictureError, match="not a picture"):
        read_picture(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n")


@pytest.mark.parametrize("fmt", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF"])
@pytest.mark.parametrize("kept", [0.35, 0.9])
def test_truncated(fmt, kept, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(noise), fmt)
    file = tmp_path / "cut.bin"
    file.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(PictureError, match=r"cut\.bin is (damaged or truncated|not a picture)"):
        read_picture(file)


@given(st.sampled_from(["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "PPM"]), st.integers(0, 2**32))
@settings(max_examples=300, deadline=None)
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_damaged_bytes_give_a_picture_or_a_picture_error(fmt, seed):
    draw = random.Random(seed)
    data = bytearray(encoded(Image.fromarray(ramp(12, 17)), fmt))
    for _ in range(draw.randint(1, 6)):
        data[draw.randrange(len(data))] = draw.randrange(256)
    try:
        array = read_picture(bytes(data)).array
    except PictureError:
        return
    assert array.ndim == 3
    assert array.shape[2] == 3
    assert array.dtype == np.uint8


def test_missing_file_names_the_nearest(tmp_path):
    (tmp_path / "kitten.jpg").write_bytes(b"x")
    with pytest.raises(PictureError, match=r"There is no picture .*kiten\.jpg.*Did you mean 'kitten\.jpg'"):
        read_picture(tmp_path / "kiten.jpg")


def test_folder_null_byte_and_long_name(tmp_path):
    with pytest.raises(PictureError, match="is a folder"):
        read_picture(tmp_path)
    for name in ("a\0b.png", "x" * 5000 + ".png"):
        with pytest.raises(PictureError, match="Could not read"):
            read_picture(tmp_path / name)
        with pytest.raises(InputError):
            find_pictures([tmp_path / name])


@pytest.mark.parametrize("source", [None, 3, ["a.png"]])
def test_other_types_are_refused(source):
    with pytest.raises(PictureError, match="path, the bytes of a file, a PIL image or a NumPy array"):
        read_picture(source)


def test_endless_file(monkeypatch):
    monkeypatch.setattr(images, "MAX_FILE_BYTES", 2**20)
    with pytest.raises(PictureError, match="/dev/zero is larger than 1 MiB"):
        read_picture("/dev/zero")


# Colour modes


def test_sixteen_bit_grey():
    levels = np.linspace(0, 65535, 256).round().astype(np.uint16).reshape(16, 16)
    for fmt in ("PNG", "TIFF"):
        array = read_picture(encoded(Image.fromarray(levels), fmt)).array
        np.testing.assert_array_equal(array[..., 0].ravel(), np.arange(256))
        np.testing.assert_array_equal(array[..., 0], array[..., 2])


def test_dark_sixteen_bit_grey_stays_dark():
    array = read_picture(encoded(Image.fromarray(np.array([[0, 1], [1, 0]], np.uint16)), "PNG")).array
    assert array.max() == 0


def test_big_endian_sixteen_bit_tiff():
    levels = np.array([[0, 257], [257 * 128, 65535]], dtype=">u2")
    # An uncompressed single-strip TIFF, written by hand: Pillow only writes the machine's own byte order.
    pixels = levels.tobytes()
    tags = [(256, 2), (257, 2), (258, 16), (259, 1), (262, 1), (273, 8), (277, 1), (278, 2), (279, len(pixels))]
    body = struct.pack(">H", len(tags)) + b"".join(struct.pack(">HHIHH", tag, 3, 1, value, 0) for tag, value in tags)
    data = b"MM\0*" + struct.pack(">I", 8 + len(pixels)) + pixels + body + bytes(4)
    np.testing.assert_array_equal(read_picture(data).array[..., 0], [[0, 1], [128, 255]])


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([[0.0, 0.5], [0.25, 1.0]], [[0, 128], [64, 255]]),
        ([[0.5, 0.5]], [[128, 128]]),
        ([[0.0, 3.0], [200.0, 255.0]], [[0, 3], [200, 255]]),
        ([[-1.0, 0.0, 1.0]], [[0, 128, 255]]),
    ],
)
def test_float_tiff(values, expected):
    data = encoded(Image.fromarray(np.array(values, np.float32)), "TIFF")
    np.testing.assert_array_equal(read_picture(data).array[..., 1], expected)


def test_float_tiff_with_nan():
    with pytest.raises(PictureError, match="NaN"):
        read_picture(encoded(Image.fromarray(np.array([[0.0, np.nan]], np.float32)), "TIFF"))


def test_32_bit_integers():
    inside = Image.fromarray(np.array([[0, 32896], [65535, 257]], np.int32))
    np.testing.assert_array_equal(read_picture(inside).array[..., 0], [[0, 128], [255, 1]])
    outside = Image.fromarray(np.array([[-100000, 0, 100000]], np.int32))
    np.testing.assert_array_equal(read_picture(outside).array[..., 0], [[0, 128, 255]])
    constant = Image.fromarray(np.full((2, 2), 100000, np.int32))
    assert read_picture(constant).array.max() == 0


def test_cmyk_jpeg():
    colours = np.zeros((16, 48, 3), np.uint8)
    colours[:, :16], colours[:, 16:32], colours[:, 32:] = (255, 0, 0), (0, 255, 0), (255, 255, 255)
    data = encoded(Image.fromarray(colours).convert("CMYK"), "JPEG", quality=98, subsampling=0)
    assert Image.open(io.BytesIO(data)).mode == "CMYK"
    assert np.abs(read_picture(data).array.astype(int) - colours).max() <= 12


def test_grey_with_and_without_alpha():
    grey = Image.fromarray(ramp()[..., 0])
    np.testing.assert_array_equal(read_picture(encoded(grey, "PNG")).array, np.repeat(ramp()[..., :1], 3, axis=2))
    grey.putalpha(0)
    assert read_picture(encoded(grey, "PNG")).array.min() == 255


def test_alpha_is_put_on_white():
    rgba = np.dstack([ramp(), np.full(ramp().shape[:2], 64, np.uint8)])
    array = read_picture(encoded(Image.fromarray(rgba), "PNG")).array
    expected = ramp() * (64 / 255) + 255 * (191 / 255)
    assert np.abs(array - expected).max() <= 1


def test_palette_with_transparency():
    for transparency in (1, b"\xff\x00\x80"):
        palette = Image.new("P", (3, 1))
        palette.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
        palette.putdata([0, 1, 2])
        array = read_picture(encoded(palette, "PNG", transparency=transparency)).array
        assert array[0, 0].tolist() == [255, 0, 0]
        assert array[0, 1].tolist() == [255, 255, 255]
        blue = [0, 0, 255] if transparency == 1 else [127, 127, 255]
        assert np.abs(array[0, 2].astype(int) - blue).max() <= 1


def test_rgb_with_a_transparent_colour():
    image = Image.fromarray(np.array([[[10, 20, 30], [40, 50, 60]]], np.uint8))
    array = read_picture(encoded(image, "PNG", transparency=(10, 20, 30))).array
    assert array.tolist() == [[[255, 255, 255], [40, 50, 60]]]


def test_black_and_white():
    array = read_picture(encoded(Image.fromarray(np.array([[True, False]])), "PNG")).array
    assert array[0, :, 0].tolist() == [255, 0]


@pytest.mark.parametrize("mode", ["La", "RGBa", "PA", "YCbCr", "HSV", "1", "P"])
def test_pil_modes(mode):
    through = {"La": "LA", "RGBa": "RGBA"}.get(mode, mode)
    image = Image.new("RGB", (5, 4), (90, 90, 90))
    image = image.convert("P", palette=Image.Palette.ADAPTIVE) if through in ("P", "PA") else image.convert(through)
    image = image.convert(mode) if through != mode else image
    array = read_picture(image).array
    expected = 0 if mode == "1" else 90
    if mode == "1":
        assert set(np.unique(array)) <= {0, 255}
    else:
        assert np.abs(array.astype(int) - expected).max() <= 2


def test_lab_is_converted_or_refused_by_name():
    image = Image.new("LAB", (4, 4), (128, 128, 128))
    try:
        image.convert("RGB")
    except ValueError:
        # Releases of Pillow that do not convert it.
        with pytest.raises(PictureError, match="colour mode 'LAB'"):
            read_picture(image)
    else:
        assert np.abs(read_picture(image).array.astype(int) - 119).max() <= 2


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("fmt", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_exif_rotation(orientation, fmt):
    image = Image.fromarray(ramp())
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if fmt == "WEBP" else {}
    data = encoded(image, fmt, exif=exif, **options)
    stored = Image.open(io.BytesIO(data))
    expected = np.asarray(ImageOps.exif_transpose(stored).convert("RGB"))
    np.testing.assert_array_equal(read_picture(data).array, expected)
    assert expected.shape[:2] == ((24, 36) if orientation < 5 else (36, 24))


def test_broken_exif_does_not_matter():
    data = encoded(Image.fromarray(ramp()), "JPEG", exif=b"Exif\0\0" + b"\xff" * 40)
    assert read_picture(data).array.shape == (24, 36, 3)


@pytest.mark.parametrize("fmt", ["GIF", "WEBP", "PNG", "TIFF"])
def test_first_frame_of_an_animation(fmt):
    frames = [Image.new("RGB", (6, 5), colour) for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
    options = {"lossless": True} if fmt == "WEBP" else {}
    data = encoded(frames[0], fmt, save_all=True, append_images=frames[1:], **options)
    assert Image.open(io.BytesIO(data)).n_frames == 3
    assert (read_picture(data).array == (255, 0, 0)).all()


def test_pil_image_is_left_as_it_was():
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = Image.open(io.BytesIO(encoded(Image.fromarray(ramp()), "PNG", exif=exif)))
    array = read_picture(stored).array
    assert array.shape == (36, 24, 3)
    assert stored.size == (36, 24)
    assert stored.getexif()[0x0112] == 6
    np.testing.assert_array_equal(np.asarray(stored), ramp())


def test_bands_agree_with_the_whole(monkeypatch):
    rgba = np.dstack([ramp(100, 37), np.full((100, 37), 77, np.uint8)])
    whole = read_picture(encoded(Image.fromarray(rgba), "PNG")).array
    monkeypatch.setattr(images, "_BAND_PIXELS", 37 * 7)
    np.testing.assert_array_equal(read_picture(encoded(Image.fromarray(rgba), "PNG")).array, whole)
    monkeypatch.setattr(images, "DRAFT_SIDE", 12)
    rgb = Image.fromarray(ramp(100, 37))
    reduced = read_picture(encoded(rgb, "PNG")).array
    np.testing.assert_array_equal(reduced, np.asarray(rgb.reduce(3)))


@pytest.mark.parametrize("mode", ["I;16", "P", "L", "F"])
def test_bands_of_other_modes(mode, monkeypatch):
    if mode == "I;16":
        image = Image.fromarray(np.arange(50 * 9, dtype=np.uint16).reshape(50, 9) * 140)
    elif mode == "F":
        image = Image.fromarray(np.linspace(-3, 9, 450, dtype=np.float32).reshape(50, 9))
    else:
        image = Image.fromarray(ramp(50, 9)).convert(mode)
    whole = read_picture(image).array
    monkeypatch.setattr(images, "_BAND_PIXELS", 9 * 4)
    np.testing.assert_array_equal(read_picture(image).array, whole)


# Size


def png_header(width, height, *, interlace=0):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, interlace)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(20_000, 20_000), (1, 2**31 - 1), (2**31 - 1, 2**31 - 1), (11_586, 11_586)], ids=str)
def test_too_many_pixels(size):
    with pytest.raises(PictureError, match=r"million\); its format is read up to 134 million\. .*convert it to JPEG"):
        read_picture(png_header(*size))


def test_limit_of_pillow_is_neither_obeyed_nor_changed(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    data = encoded(Image.fromarray(ramp()), "PNG")
    errors = []

    def work():
        for _ in range(20):
            try:
                read_picture(data)
            except Exception as error:
                errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert Image.MAX_IMAGE_PIXELS == 100


def test_progressive_jpeg_that_would_take_too_much(monkeypatch):
    monkeypatch.setattr(images, "MAX_COEFFICIENT_BYTES", 24 * 36 * 2 * 3 - 1)
    full = encoded(Image.fromarray(ramp()), "JPEG", progressive=True, subsampling=0)
    with pytest.raises(PictureError, match="progressive JPEG of 36 x 24 pixels"):
        read_picture(full)
    read_picture(encoded(Image.fromarray(ramp()), "JPEG", progressive=True, subsampling=2))
    read_picture(encoded(Image.fromarray(ramp()), "JPEG", subsampling=0))


MEASURE = r"""
import re, resource, sys
from pathlib import Path
from whylens.images import read_picture
from whylens.errors import PictureError
try:
    print(read_picture(sys.argv[1]).array.shape)
except PictureError as error:
    print(error)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (2**20 if sys.platform == "darwin" else 2**10)
status = Path("/proc/self/status")
if status.exists():
    # Linux hands the peak of the process that started this one down to it; VmHWM begins anew.
    peak = int(re.search(r"VmHWM:\s+(\d+)", status.read_text())[1]) // 2**10
print(peak)
"""


def peak_of(path):
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(path)], capture_output=True, text=True, check=True, timeout=300
    )
    answer, megabytes = done.stdout.strip().split("\n")
    return answer, int(megabytes)


@pytest.mark.slow
def test_huge_jpeg_in_bounded_memory(tmp_path):
    file = tmp_path / "huge.jpg"
    # Grey keeps the making of the file itself small.
    Image.new("L", (20_000, 20_000), 77).save(file)
    answer, megabytes = peak_of(file)
    assert answer == "(2500, 2500, 3)"
    assert megabytes < 400


@pytest.mark.slow
def test_huge_png_in_bounded_memory(tmp_path):
    file = tmp_path / "huge.png"
    Image.new("1", (20_000, 20_000)).save(file)
    answer, megabytes = peak_of(file)
    assert "20,000 x 20,000 pixels" in answer
    assert megabytes < 200


@pytest.mark.slow
def test_largest_png_in_bounded_memory(tmp_path):
    file = tmp_path / "large.png"
    Image.new("RGBA", (11_585, 11_585), (200, 0, 0, 128)).save(file, compress_level=1)
    answer, megabytes = peak_of(file)
    assert answer == "(1655, 1655, 3)"
    assert megabytes < 900


# Arrays


def test_float_arrays():
    values = ramp() / 255
    np.testing.assert_array_equal(read_picture(values).array, ramp())
    np.testing.assert_array_equal(read_picture(values.astype(np.float32)).array, ramp())
    assert read_picture(values).sha256 == read_picture(ramp()).sha256
    assert read_picture(values[..., 0]).array.shape == (24, 36, 3)
    assert read_picture(values[..., :1]).array.shape == (24, 36, 3)


def test_array_is_copied():
    array = ramp()
    picture = read_picture(array)
    array[:] = 0
    np.testing.assert_array_equal(picture.array, ramp())


def test_array_with_alpha():
    rgba = np.dstack([ramp(), np.full(ramp().shape[:2], 64, np.uint8)])
    from_file = read_picture(encoded(Image.fromarray(rgba), "PNG")).array
    assert np.abs(read_picture(rgba).array.astype(int) - from_file).max() <= 1


@pytest.mark.parametrize("bad", [np.nan, np.inf, -0.1, 1.1, 255.0])
def test_bad_floats(bad):
    values = np.full((4, 4, 3), 0.5)
    values[0, 0, 0] = bad
    with pytest.raises(PictureError, match=r"NaN or infinite|must lie in \[0, 1\]"):
        read_picture(values)


@pytest.mark.parametrize("shape", [(4,), (4, 4, 2), (3, 4, 4, 4), (0, 4, 3), (4, 0), (3, 8, 8)])
def test_bad_shapes(shape):
    with pytest.raises(PictureError, match=r"must have the shape"):
        read_picture(np.zeros(shape, np.uint8))


@pytest.mark.parametrize("dtype", [object, "U3", complex])
def test_bad_dtypes(dtype):
    with pytest.raises(PictureError, match="must be uint8 or float"):
        read_picture(np.zeros((4, 4, 3)).astype(dtype))


# Names


@pytest.mark.parametrize("name", ["Häßliche Kätzchen.png", "小猫 🐈.png", "a b'c\".png"])
def test_non_ascii_paths(name, tmp_path):
    folder = tmp_path / "Ünïcode"
    folder.mkdir()
    Image.fromarray(ramp()).save(folder / name)
    picture = read_picture(folder / name)
    assert picture.name == name
    np.testing.assert_array_equal(picture.array, ramp())
    assert find_pictures(tmp_path) == [folder / name]
    assert read_picture(str(folder / name)).sha256 == picture.sha256


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse file names that are not UTF-8")
def test_name_that_is_not_utf8(tmp_path):
    file = Path(str(tmp_path / "x")).with_name(b"k\xe4tzchen.png".decode("utf-8", "surrogateescape"))
    Image.fromarray(ramp()).save(file)
    assert find_pictures([tmp_path]) == [file]
    picture = read_picture(file)
    assert picture.name.encode("utf-8").decode() == "k\ufffdtzchen.png"
    file.write_bytes(b"")
    with pytest.raises(PictureError) as caught:
        read_picture(file)
    str(caught.value).encode("utf-8")


def test_picture_passes_through():
    picture = read_picture(ramp())
    assert read_picture(picture) is picture
    assert isinstance(picture, Picture)
    np.testing.assert_array_equal(np.asarray(picture.as_pil()), ramp())


# find_pictures


def test_empty_folder(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(InputError, match=r"No pictures in .*Accepted endings: .*\.jpg"):
        find_pictures([tmp_path])
    with pytest.raises(InputError, match="No pictures in nothing"):
        find_pictures([])


def test_missing_folder_names_the_nearest(tmp_path):
    (tmp_path / "photos").mkdir()
    with pytest.raises(InputError, match=r"no file or folder .*fotos.*Did you mean 'photos'"):
        find_pictures([tmp_path / "fotos"])


def test_nested_sorted_hidden_and_repeated(tmp_path, monkeypatch):
    for name in ("b.PNG", "a.jpg", "sub/z.webp", "sub/deep/c.tiff", ".hidden.png", ".git/x.png", "sub/.part/y.png"):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"x")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "words.txt").write_text("x")
    expected = ["a.jpg", "b.PNG", "sub/deep/c.tiff", "sub/z.webp"]
    assert [p.relative_to(tmp_path).as_posix() for p in find_pictures([tmp_path])] == expected
    assert find_pictures(str(tmp_path)) == find_pictures([tmp_path])
    # A file named before its folder keeps its place, and neither spelling is listed twice.
    monkeypatch.chdir(tmp_path)
    again = find_pictures(["sub/z.webp", tmp_path, "sub/../a.jpg", "words.txt", ".hidden.png"])
    assert [p.name for p in again] == ["z.webp", "a.jpg", "b.PNG", "c.tiff", "words.txt", ".hidden.png"]


def test_one_family_of_errors():
    assert issubclass(PictureError, InputError)
    assert issubclass(PictureError, WhylensError)
    assert issubclass(PictureError, ValueError)
