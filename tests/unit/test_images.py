"""Pictures of any kind come out upright, RGB and within the budget; whatever is no picture is refused with a reason."""

from __future__ import annotations

import io
import math
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from pathor1.data.images import FORMATS, LARGEST_RATIO, SHORTEST_SIDE, decode, decode_for, fit, fitted_size
from pathor1.errors import DataError

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # it warns of what it goes on with

ANY = {"min_pixels": 1, "max_pixels": 10**7}  # a budget in which every picture here stays as large as it is
RED, GREEN, BLUE, YELLOW = (220, 20, 30), (20, 200, 40), (30, 40, 210), (230, 220, 30)


def quarters(width: int = 96, height: int = 64) -> Image.Image:
    """Red and green above blue and yellow: it looks different however it is turned."""
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    middle, centre = height // 2, width // 2
    pixels[:middle, :centre], pixels[:middle, centre:] = RED, GREEN
    pixels[middle:, :centre], pixels[middle:, centre:] = BLUE, YELLOW
    return Image.fromarray(pixels)


def encode(picture: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def pixels(data: bytes) -> NDArray[np.uint8]:
    """What a reader sees that does not look at EXIF."""
    return np.asarray(Image.open(io.BytesIO(data)))


def assert_quarters(picture: Image.Image, tolerance: int = 12) -> None:
    assert picture.mode == "RGB"
    small = np.asarray(picture.resize((2, 2), Image.Resampling.NEAREST)).reshape(4, 3).astype(int)
    assert np.abs(small - np.asarray([RED, GREEN, BLUE, YELLOW])).max() <= tolerance


def refused(data: bytes) -> str:
    """The one line with which both functions refuse the bytes."""
    lines = set()
    for function in (decode, fit):
        with pytest.raises(DataError) as caught:
            function(data, min_pixels=3136, max_pixels=50176)
        lines.add(str(caught.value))
    assert len(lines) == 1
    line = lines.pop()
    assert "\n" not in line
    assert len(line) < 300
    return line


# ---------------------------------------------------------------------- sizes


@st.composite
def budgets(draw: st.DrawFn) -> tuple[int, int, int, int]:
    """Width, height, least and most pixels, as far as pictures and recipes go; the most are twice the least or more."""
    short = draw(st.integers(SHORTEST_SIDE, 2000))
    long = draw(st.integers(short, LARGEST_RATIO * short))
    least = draw(st.integers(784, 10**6))
    size = draw(st.sampled_from([(short, long), (long, short)]))
    return *size, least, draw(st.integers(2 * least, 10**7))


@given(budgets())
@settings(max_examples=500, deadline=None)
def test_the_budget_is_kept_and_the_aspect_ratio_too(case: tuple[int, int, int, int]) -> None:
    width, height, least, most = case
    fitted = fitted_size(width, height, min_pixels=least, max_pixels=most)
    assert least <= fitted[0] * fitted[1] <= most
    if least <= width * height <= most:
        assert fitted == (width, height)
    # In whole numbers: a side of the ideal size is the square root of pixels x width / height.
    for side, other, found in ((width, height, fitted[0]), (height, width, fitted[1])):
        if width * height > most:
            assert found**2 * other <= most * side < (found + 1) ** 2 * other
        elif width * height < least:
            assert (found - 1) ** 2 * other < least * side <= found**2 * other
    assert fitted_size(*fitted, min_pixels=least, max_pixels=most) == fitted


@given(st.integers(4, 3000), st.integers(4, 3000), st.integers(784, 10**6))
@settings(deadline=None)
def test_a_budget_of_one_size_is_met_from_below(width: int, height: int, pixels: int) -> None:
    if not 0.01 <= width / height <= 100:
        return
    across, down = fitted_size(width, height, min_pixels=pixels, max_pixels=pixels)
    assert across * down <= pixels
    if width * height != pixels and across * down < pixels:
        assert across**2 * height <= pixels * width < (across + 1) ** 2 * height
        assert down**2 * width <= pixels * height < (down + 1) ** 2 * width


@pytest.mark.parametrize(
    ("size", "least", "most", "fitted"),
    [
        ((1000, 500), 3136, 125_000, (500, 250)),
        ((56, 56), 3136, 3136, (56, 56)),
        ((28, 28), 3136, 501_760, (56, 56)),
        ((30, 30), 3136, 3136, (56, 56)),
        ((57, 56), 3136, 3136, (56, 55)),
        ((4000, 40), 3136, 40_000, (2000, 20)),
        ((200, 200), 784, 784, (28, 28)),  # in floating point 27.999999999999996
        ((20, 10), 3136, 501_760, (80, 40)),
    ],
)
def test_sizes_by_hand(size: tuple[int, int], least: int, most: int, fitted: tuple[int, int]) -> None:
    assert fitted_size(*size, min_pixels=least, max_pixels=most) == fitted


@pytest.mark.parametrize(("size", "fitted"), [((96, 64), (96, 64)), ((24, 16), (69, 46)), ((480, 320), (273, 182))])
def test_a_picture_is_resized_whole(size: tuple[int, int], fitted: tuple[int, int]) -> None:
    picture = decode(encode(quarters(*size), "PNG"), min_pixels=3136, max_pixels=50_000)
    assert picture.size == fitted
    assert_quarters(picture)


# ---------------------------------------------------------------------- what pictures come in

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "png": ("PNG", {}),
    "jpeg": ("JPEG", {"quality": 95}),
    "progressive": ("JPEG", {"quality": 95, "progressive": True}),
    "tiff": ("TIFF", {}),
    "lzw": ("TIFF", {"compression": "tiff_lzw"}),
    "webp": ("WEBP", {"lossless": True}),
    "bmp": ("BMP", {}),
    "jpeg2000": ("JPEG2000", {}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_within_the_budget_keeps_its_pixels(kind: str) -> None:
    name, options = KINDS[kind]
    assert name in FORMATS
    data = encode(quarters(), name, **options)
    assert_quarters(decode(data, **ANY))
    assert np.array_equal(pixels(fit(data, **ANY)), pixels(data))


@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_that_is_fitted_is_what_decode_gives_and_fits_from_then_on(kind: str) -> None:
    name, options = KINDS[kind]
    data = encode(quarters(), name, **options)
    fitted = fit(data, min_pixels=784, max_pixels=2000)
    assert Image.open(io.BytesIO(fitted)).format == "BMP"
    assert np.array_equal(pixels(fitted), np.asarray(decode(data, min_pixels=784, max_pixels=2000)))
    assert fit(fitted, min_pixels=784, max_pixels=2000) == fitted


STORED: dict[int, Callable[[NDArray[np.uint8]], NDArray[np.uint8]]] = {
    1: lambda shown: shown,
    2: lambda shown: shown[:, ::-1],
    3: lambda shown: shown[::-1, ::-1],
    4: lambda shown: shown[::-1],
    5: lambda shown: shown.transpose(1, 0, 2),
    6: lambda shown: np.rot90(shown, 1),
    7: lambda shown: shown[::-1, ::-1].transpose(1, 0, 2),
    8: lambda shown: np.rot90(shown, -1),
}


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("kind", ["png", "jpeg", "webp", "tiff"])
def test_a_camera_held_any_way_gives_an_upright_picture(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.ascontiguousarray(STORED[orientation](np.asarray(quarters())))
    name, options = KINDS[kind]
    data = encode(Image.fromarray(stored), name, **options, exif=exif)
    picture = decode(data, **ANY)
    assert picture.size == (96, 64)
    assert_quarters(picture)
    fitted = fit(data, **ANY)
    assert_quarters(Image.fromarray(pixels(fitted)))  # for readers that do not look at EXIF
    small = decode(data, min_pixels=1, max_pixels=24 * 16)
    assert small.size == (24, 16)
    assert_quarters(small)


@pytest.mark.parametrize(("size", "budget"), [((1200, 803), 90_000), ((803, 1200), 20_000), ((640, 640), 102_400)])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_large_jpeg_is_decoded_small_and_looks_the_same(size: tuple[int, int], budget: int, mode: str) -> None:
    small = np.random.default_rng(0).integers(0, 256, (size[1] // 16, size[0] // 16, 3), dtype=np.uint8)
    drawn = Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).convert(mode)
    data = encode(drawn, "JPEG", quality=95)
    found = decode(data, min_pixels=1, max_pixels=budget)
    whole = Image.open(io.BytesIO(data)).convert("RGB")
    assert found.size == fitted_size(*size, min_pixels=1, max_pixels=budget)
    wanted = whole.resize(found.size, Image.Resampling.BICUBIC)
    difference = np.abs(np.asarray(found, dtype=int) - np.asarray(wanted, dtype=int))
    assert difference.mean() < 3
    # Not a pixel aside: that would be twice as far off.
    aside = np.abs(np.asarray(found, dtype=int)[:, 1:] - np.asarray(wanted, dtype=int)[:, :-1])
    assert aside.mean() > 2 * difference.mean()


@pytest.mark.parametrize(
    ("kind", "side", "size"),
    [
        ("JPEG", 201, (1200, 804)),  # half of it would be 402, a quarter 201
        ("JPEG", 202, (1200, 804)),
        ("JPEG", 804, (1200, 804)),
        ("JPEG", 3000, (1200, 804)),
        ("PNG", 201, (1200, 804)),
    ],
)
def test_no_more_of_a_jpeg_is_decoded_than_is_kept_of_it(kind: str, side: int, size: tuple[int, int]) -> None:
    small = np.random.default_rng(0).integers(0, 256, (size[1] // 16, size[0] // 16, 3), dtype=np.uint8)
    data = encode(Image.fromarray(small).resize(size, Image.Resampling.BICUBIC), kind)
    found = decode_for(data, side)
    factor = {("JPEG", 201): 4, ("JPEG", 202): 2}.get((kind, side), 1)
    assert found.size == (size[0] // factor, size[1] // factor)
    wanted = Image.open(io.BytesIO(data)).resize((150, 100), Image.Resampling.BICUBIC)
    difference = np.asarray(found.resize((150, 100), Image.Resampling.BICUBIC), dtype=int) - np.asarray(wanted)
    assert np.abs(difference).mean() < 3


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
@pytest.mark.parametrize("exif", [b"Exif\0\0garbage!", b"Exif\0\0II*\0\xff\xff\xff\xff"])
def test_a_sound_picture_with_broken_exif_is_taken_as_it_stands(kind: str, exif: bytes) -> None:
    name, options = KINDS[kind]
    data = encode(quarters(), name, **options, exif=exif)
    assert_quarters(decode(data, **ANY))
    fitted = fit(data, **ANY)
    assert_quarters(Image.open(io.BytesIO(fitted)))
    assert fit(fitted, **ANY) == fitted


def test_transparency_is_laid_on_white() -> None:
    shades = np.zeros((8, 8, 4), dtype=np.uint8)
    shades[..., :3] = RED
    shades[..., 3] = np.arange(64).reshape(8, 8) * 4
    data = encode(Image.fromarray(shades), "PNG")
    alpha = shades[..., 3:].astype(float) / 255
    expected = alpha * np.asarray(RED) + (1 - alpha) * 255
    for found in (np.asarray(decode(data, **ANY)), pixels(fit(data, **ANY))):
        assert found.shape == (8, 8, 3)
        assert np.abs(found - expected).max() <= 1


@pytest.mark.parametrize("mode", ["P", "L", "RGB", "1"])
def test_a_colour_that_stands_for_nothing_is_white(mode: str) -> None:
    """PNG's tRNS: one colour, or one entry of the palette, is see-through."""
    picture = Image.new("RGB", (8, 8), (0, 0, 0))
    picture.paste((255, 255, 255), (0, 0, 4, 8))
    picture = picture.convert(mode)
    hidden = picture.getpixel((7, 7))
    data = encode(picture, "PNG", transparency=hidden)
    assert (np.asarray(decode(data, **ANY)) == 255).all()
    assert (pixels(fit(data, **ANY)) == 255).all()


def test_a_palette_becomes_its_colours() -> None:
    data = encode(quarters().convert("P", palette=Image.Palette.ADAPTIVE), "PNG")
    assert_quarters(decode(data, **ANY))
    assert pixels(fit(data, **ANY)).shape == (64, 96, 3)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("bits", [10, 12, 16])
def test_deep_grey_is_scaled_to_its_brightest_pixel(kind: str, bits: int) -> None:
    depth = np.linspace(0, 2**bits - 1, 64).reshape(8, 8)
    data = encode(Image.fromarray(depth.astype(np.uint16)), kind)
    expected = np.repeat(np.linspace(0, 255, 64).reshape(8, 8, 1), 3, axis=2)
    assert np.abs(np.asarray(decode(data, **ANY)) - expected).max() < 1.25
    assert np.array_equal(pixels(fit(data, **ANY)), np.asarray(decode(data, **ANY)))


@pytest.mark.parametrize("type_", [np.uint16, np.int32, np.float32])
def test_deep_black_stays_black(type_: type[Any]) -> None:
    data = encode(Image.fromarray(np.zeros((8, 8), dtype=type_)), "TIFF")
    assert not np.asarray(decode(data, **ANY)).any()


def test_what_is_no_number_in_a_measured_picture_is_black() -> None:
    values = np.full((8, 8), 0.5, dtype=np.float32)
    values[0] = [math.nan, math.inf, -math.inf, -3.0, 0.0, 1.0, 0.25, 0.5]
    found = np.asarray(decode(encode(Image.fromarray(values), "TIFF"), **ANY))
    assert found[0, :, 0].tolist() == [0, 0, 0, 0, 0, 255, 63, 127]


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_printers_colours_are_turned_into_light(kind: str) -> None:
    data = encode(quarters().convert("CMYK"), kind)
    assert_quarters(decode(data, **ANY), tolerance=20)
    assert pixels(fit(data, **ANY)).shape == (64, 96, 3)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_of_several_frames_the_first_is_taken(kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    frames = [Image.new("RGB", (96, 64), colour) for colour in ("black", "white")]
    data = encode(quarters(), kind, save_all=True, append_images=frames, **options)
    assert Image.open(io.BytesIO(data)).n_frames == 3
    assert_quarters(decode(data, **ANY))
    fitted = Image.open(io.BytesIO(fit(data, **ANY)))
    assert (fitted.format, getattr(fitted, "n_frames", 1)) == ("BMP", 1)
    assert_quarters(fitted)


# ---------------------------------------------------------------------- what is refused


def test_no_bytes() -> None:
    assert refused(b"") == "an empty picture: 0 bytes"


@pytest.mark.parametrize(
    "data",
    [
        b"not a picture",
        b"\x89PNG",
        bytes(1000),
        b"%PDF-1.4 ",
        b"<svg xmlns='http://www.w3.org/2000/svg' width='64' height='64'/>",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\n",
        b"P6 64 64 255\n" + bytes(3 * 64 * 64),
    ],
    ids=["text", "magic", "zeros", "pdf", "svg", "eps", "ppm"],
)
def test_what_is_no_picture_of_the_formats_we_read(data: bytes) -> None:
    assert refused(data) == f"{len(data)} bytes that are no picture, beginning with {data[:8]!r}"


def test_eps_reaches_no_interpreter() -> None:
    """PIL would hand it to Ghostscript, which runs what is in the file."""
    data = encode(quarters(), "EPS")
    assert Image.open(io.BytesIO(data)).format == "EPS"
    assert "no picture" in refused(data)


@pytest.mark.parametrize("kind", ["png", "jpeg", "progressive", "lzw", "webp", "jpeg2000"])
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_half_a_picture(kind: str, share: float) -> None:
    name, options = KINDS[kind]
    noise = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    data = encode(Image.fromarray(noise), name, **options)
    line = refused(data[: int(share * len(data))])
    assert "cannot be decoded" in line or "no picture" in line


def png_that_claims(width: int, height: int) -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("width", "height"), [(100_000, 100_000), (13_000, 13_000), (2**31 - 1, 2**31 - 1)])
def test_a_picture_that_would_fill_the_memory_is_not_decoded(width: int, height: int) -> None:
    line = refused(png_that_claims(width, height))
    assert "cut it into tiles" in line


@pytest.mark.parametrize(("width", "height"), [(1, 1000), (1000, 1), (3, 3), (5, 501), (1, 1)])
def test_a_strip_is_no_picture(width: int, height: int) -> None:
    line = refused(encode(Image.new("RGB", (width, height)), "PNG"))
    assert line == f"a picture of {width} x {height} pixels is too thin to be one"


def test_a_long_picture_is_still_one() -> None:
    assert decode(encode(Image.new("RGB", (5, 500)), "PNG"), **ANY).size == (5, 500)


def test_a_tiff_whose_pixels_lie_beyond_any_file_is_refused() -> None:
    data = bytearray(encode(quarters(), "TIFF"))
    start = struct.unpack_from("<I", data, 4)[0]
    for entry in range(struct.unpack_from("<H", data, start)[0]):
        place = start + 2 + 12 * entry
        if struct.unpack_from("<H", data, place)[0] == 273:  # where the strips begin, now as a number of 64 bits
            struct.pack_into("<HHII", data, place, 273, 16, 1, len(data))
    assert "cannot be decoded" in refused(bytes(data) + b"\xff" * 8)


SOUND = [encode(quarters(), name, **options) for name, options in KINDS.values()]


@given(st.sampled_from(SOUND), st.data())
@settings(max_examples=300, deadline=None)
def test_bytes_changed_anywhere_give_a_picture_or_a_reason(sound: bytes, data: st.DataObject) -> None:
    broken = bytearray(sound)
    place = st.one_of(st.integers(0, min(250, len(sound) - 1)), st.integers(0, len(sound) - 1))
    for at, value in data.draw(st.lists(st.tuples(place, st.integers(0, 255)), min_size=1, max_size=6)):
        broken[at] = value
    try:
        picture = decode(bytes(broken), min_pixels=784, max_pixels=50_000)
    except DataError as error:
        assert "\n" not in str(error)  # noqa: PT017  # either way is right
    else:
        assert picture.mode == "RGB"
        assert picture.width * picture.height <= 50_000
