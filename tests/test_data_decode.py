"""Image files as pixels: depth, transparency, orientation; refused files; which files are images."""

import os

import numpy as np
import pytest
from PIL import Image

from wcord_fast import data
from wcord_fast.data import decode

RAMP = np.linspace(0, 65535, 40 * 60).reshape(40, 60).astype(np.uint16)


def pixels(path, mode="RGB"):
    return np.asarray(decode.read(str(path), mode))


def saved(tmp_path, image, name, **options):
    image.save(tmp_path / name, **options)
    return tmp_path / name


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm", "a.jp2"])
def test_sixteen_bits_are_scaled_by_the_format_s_white(tmp_path, name):
    if name == "a.pgm":  # which old releases of Pillow do not write
        path = tmp_path / name
        path.write_bytes(b"P5 60 40 65535\n" + RAMP.astype(">u2").tobytes())
    else:
        path = saved(tmp_path, Image.fromarray(RAMP), name)
    want = np.round(RAMP / 257).astype(np.uint8)
    assert np.array_equal(pixels(path, "L"), want)
    assert np.array_equal(pixels(path), np.repeat(want[..., None], 3, 2))


def test_bytes_of_either_order_and_white_that_is_zero(tmp_path):
    big = Image.fromarray(RAMP.astype(">u2"))
    assert big.mode == "I;16B"
    want = np.round(RAMP / 257).astype(np.uint8)
    assert np.array_equal(pixels(saved(tmp_path, big, "big.tif"), "L"), want)
    inverted = saved(tmp_path, Image.fromarray(RAMP), "inverted.tif", tiffinfo={decode.PHOTOMETRIC: 0})
    with Image.open(inverted) as image:
        assert image.tag_v2[decode.PHOTOMETRIC] == 0
    assert np.array_equal(pixels(inverted, "L"), np.round((65535 - RAMP) / 257).astype(np.uint8))


@pytest.mark.parametrize(
    ("values", "name", "mode"),
    [
        (np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4), "a.tif", "F"),
        (np.arange(12, dtype=np.int32).reshape(3, 4) * 70_000, "a.tif", "I"),
    ],
)
def test_values_without_a_white_are_refused(tmp_path, values, name, mode):
    path = saved(tmp_path, Image.fromarray(values), name)
    with pytest.raises(decode.Unreadable, match=rf"a\.tif: cannot be read as an image: mode {mode}, expected 8 or 16"):
        decode.read(str(path))


def test_reason_does_not_repeat_the_path(tmp_path):
    path = tmp_path / "text.png"
    for reason in (r"\[Errno 2\] No such file or directory", "cannot identify image file"):
        with pytest.raises(decode.Unreadable, match=rf"text\.png: cannot be read as an image: {reason}$"):
            decode.read(str(path))
        path.write_text("no image")


@pytest.mark.parametrize("loader", ["folder", "imagenet"])
def test_both_loaders_read_and_refuse_deep_images_equally(tmp_path, loader):
    for part, name in ((p, c) for p in ("train", "val") for c in "ab"):
        (tmp_path / part / name).mkdir(parents=True)
        Image.fromarray(np.full((20, 20), 0x4080, np.uint16)).save(tmp_path / part / name / "0.png")
    dataset = data.load(loader, data_dir=tmp_path, image_size=16)
    images = next(iter(data.test_batches(dataset, 2))).images
    grey = images[:, 0] * dataset.std[0] + dataset.mean[0]
    assert np.allclose(grey * 255, 0x40, atol=0.01)  # 0x4080 / 257 = 64.2
    Image.fromarray(np.zeros((9, 9), np.float32)).save(tmp_path / "val" / "b" / "1.tif")
    with pytest.raises(ValueError, match=r"1 of 5 image files cannot be read: .*1\.tif: .*mode F"):
        list(data.test_batches(data.load(loader, data_dir=tmp_path, image_size=16), 3))


def test_transparency_is_ignored(tmp_path, recwarn):
    """A pixel has its stored colour, whatever its alpha. Pillow's warnings are suppressed."""
    rng = np.random.default_rng(0)
    colour = rng.integers(0, 256, (8, 9, 4), dtype=np.uint8)
    path = saved(tmp_path, Image.fromarray(colour), "rgba.png")
    assert np.array_equal(pixels(path), colour[..., :3])
    path = saved(tmp_path, Image.fromarray(colour[..., [0, 3]]), "la.png")
    assert np.array_equal(pixels(path), np.repeat(colour[..., :1], 3, 2))
    palette = Image.fromarray(colour[..., :3]).quantize(16)
    want = np.asarray(palette.convert("RGB"))
    path = saved(tmp_path, palette, "p.png", transparency=bytes(range(0, 256, 17)))
    assert np.array_equal(pixels(path), want)
    assert np.array_equal(pixels(path, "L"), np.asarray(Image.fromarray(want).convert("L")))
    assert not recwarn.list


def test_cmyk_one_bit_and_sixteen_bit_colour(tmp_path):
    cmyk = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    assert pixels(saved(tmp_path, cmyk, "cmyk.tif"))[0, 0].tolist() == [255, 0, 0]
    assert np.abs(pixels(saved(tmp_path, cmyk, "cmyk.jpg", quality=95))[0, 0].astype(int) - [255, 0, 0]).max() < 6
    one = Image.fromarray(np.eye(8, dtype=bool))
    assert pixels(saved(tmp_path, one, "one.png"), "L").tolist() == (np.eye(8) * 255).astype(int).tolist()
    (tmp_path / "deep.ppm").write_bytes(b"P6 2 1 65535 " + np.array([0, 65535, 0x8000, 1, 2, 3], ">u2").tobytes())
    assert pixels(tmp_path / "deep.ppm").tolist() == [[[0, 255, 128], [0, 0, 0]]]


UPRIGHT = {  # the transform of each EXIF orientation
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: np.rot90,
}


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.tif", "a.webp"])
@pytest.mark.parametrize("turn", range(1, 9))
def test_photos_are_upright(tmp_path, turn, name):
    corner = np.zeros((32, 48, 3), np.uint8)
    corner[:16, :24], corner[:16, 24:] = 255, 120  # every turn and mirror shows
    exif = Image.Exif()
    exif[0x0112] = turn
    options = {"quality": 100} if name.endswith(("jpg", "webp")) else {}
    path = saved(tmp_path, Image.fromarray(corner), name, exif=exif, **options)
    want = UPRIGHT[turn](corner).astype(int)
    assert pixels(path).shape == want.shape and np.abs(pixels(path) - want).max() < 8


def test_damaged_exif_does_not_make_the_pixels_unreadable(tmp_path):
    path = saved(
        tmp_path, Image.new("RGB", (8, 8), (9, 9, 200)), "a.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\xff no tags"
    )
    assert pixels(path).shape == (8, 8, 3)


def test_system_errors_do_not_blame_the_image_file(tmp_path, monkeypatch):
    path = saved(tmp_path, Image.new("L", (4, 4)), "a.png")

    def fails(*_):
        raise OSError(24, "Too many open files", str(path))

    monkeypatch.setattr(decode.Image, "open", fails)
    with pytest.raises(OSError, match="Too many open files"):
        decode.read(str(path))
    monkeypatch.undo()
    os.symlink(tmp_path / "nowhere.png", tmp_path / "dangling.png")
    with pytest.raises(decode.Unreadable, match=r"dangling\.png: cannot be read .*No such file"):
        decode.read(str(tmp_path / "dangling.png"))


def test_suffixes_equal_those_that_pillow_decodes():
    suffixes = decode.suffixes()
    assert {".jpg", ".jpeg", ".jfif", ".png", ".tif", ".webp", ".gif", ".bmp", ".ppm", ".jp2", ".mpo"} <= suffixes
    known = Image.registered_extensions()
    assert (".avif" in suffixes) == (".avif" in known) and (".heic" in suffixes) == (".heic" in known)
    assert (
        not {".mpg", ".eps", ".pdf", ".h5", ".grib", ".txt", ".db", ""} & suffixes
    )  # films, data, and formats that can only be written


@pytest.mark.parametrize("suffix", [".webp", ".jfif", ".avif"])
def test_newer_suffixes_are_images(tmp_path, suffix):
    if suffix not in decode.suffixes():
        pytest.skip(f"this Pillow has no {suffix}")
    for name in "ab":
        (tmp_path / name).mkdir()
        for i in range(3):
            Image.new("RGB", (16, 16), (200, 40, 40)).save(tmp_path / name / f"{i}{suffix}")
    dataset = data.load("folder", data_dir=tmp_path)
    assert len(dataset.train_labels) + len(dataset.test_labels) == 6
    assert np.abs(dataset.train_images[0, :, 8, 8].numpy().astype(int) - [200, 40, 40]).max() < 8
