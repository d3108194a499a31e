"""Data sets: values against their formulas, every way a file can be wrong, the order of batches."""

from __future__ import annotations

import doctest
import gzip
import importlib
import math
import pkgutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import bayesbin.data
from bayesbin.core.names import DATASETS
from bayesbin.data import (
    Batches,
    DataError,
    Dataset,
    RandomCropFlip,
    Splits,
    cifar_folder,
    data_folder,
    digits,
    idx_folder,
    load,
    regression_1d,
    two_moons,
    uci_folder,
    usps_folder,
)

TRAIN_IMAGES, TRAIN_LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
TEST_IMAGES, TEST_LABELS = "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"


def idx_bytes(array: np.ndarray) -> bytes:
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    return header + array.astype(np.uint8).tobytes()


def write_idx(path: Path, array: np.ndarray) -> None:
    path.with_name(path.name + ".gz").write_bytes(gzip.compress(idx_bytes(array)))


@pytest.fixture
def arrays() -> dict[str, np.ndarray]:
    """12 training and 6 test images of 3 x 4 pixels, in three classes."""
    generator = np.random.default_rng(7)
    return {
        TRAIN_IMAGES: generator.integers(0, 256, (12, 3, 4)),
        TRAIN_LABELS: np.arange(12) % 3,
        TEST_IMAGES: generator.integers(0, 256, (6, 3, 4)),
        TEST_LABELS: np.arange(6) % 3,
    }


@pytest.fixture
def folder(tmp_path: Path, arrays: dict[str, np.ndarray]) -> Path:
    root = tmp_path / "pictures"
    root.mkdir()
    for stem, array in arrays.items():
        write_idx(root / stem, array)
    return root


def assert_same(left: Dataset, right: Dataset) -> None:
    assert torch.equal(left.x, right.x)
    assert torch.equal(left.y, right.y)
    assert left.num_classes == right.num_classes


def test_docstring_examples() -> None:
    names = [info.name for info in pkgutil.iter_modules(bayesbin.data.__path__, "bayesbin.data.")]
    results = [doctest.testmod(importlib.import_module(name)) for name in names]
    assert sum(result.attempted for result in results) >= 14
    assert sum(result.failed for result in results) == 0


# Dataset and Splits


@pytest.mark.parametrize(
    ("x", "y", "num_classes", "message"),
    [
        (torch.zeros(0, 2), torch.zeros(0).long(), 2, "at least one example"),
        (
            torch.zeros(3, 2),
            torch.zeros(2).long(),
            2,
            r"got x of shape \(3, 2\) and y of shape \(2,\)",
        ),
        (torch.tensor(1.0), torch.tensor(1), 2, "at least one example"),
        (torch.tensor([[0.0], [math.nan]]), torch.tensor([0, 1]), 2, "1 of them NaN or infinite"),
        (torch.tensor([[math.inf], [-math.inf]]), torch.tensor([0, 1]), 2, "2 of them NaN"),
        (torch.zeros(2, 1).long(), torch.tensor([0, 1]), 2, "torch.int64.*use .float"),
        (torch.zeros(2, 1), torch.tensor([0.0, math.nan]), None, "1 of them NaN or infinite"),
        (torch.zeros(2, 1), torch.tensor([0, 1]), None, "expected finite floating-point numbers"),
        (
            torch.zeros(2, 1),
            torch.tensor([0, 2]),
            2,
            r"in 0 \.\. 1, got torch.int64 \(2,\) in 0 \.\. 2",
        ),
        (torch.zeros(2, 1), torch.tensor([-1, 1]), 2, r"in -1 \.\. 1; use .long\(\) or renumber"),
        (torch.zeros(2, 1), torch.tensor([0.0, 1.0]), 2, "expected int64 labels"),
        (torch.zeros(2, 1), torch.tensor([[0], [1]]), 2, r"\(2, 1\) in 0 \.\. 1"),
    ],
)
def test_dataset_rejects(x: Tensor, y: Tensor, num_classes: int | None, message: str) -> None:
    with pytest.raises(DataError, match=f"toy: .*{message}"):
        Dataset(x, y, "toy", num_classes)


def test_dataset_is_frozen_and_data_error_is_a_value_error() -> None:
    with pytest.raises(AttributeError):
        two_moons().name = "other"  # pyright: ignore[reportAttributeAccessIssue]
    assert issubclass(DataError, ValueError)


def test_splits_rejects_a_test_set_of_another_kind() -> None:
    moons, curve = two_moons(), regression_1d()
    with pytest.raises(
        DataError, match=r"torch.Size\(\[2\]\), 2\), got \(torch.Size\(\[1\]\), None"
    ):
        Splits(moons, curve)
    with pytest.raises(DataError, match="take both from one source"):
        Splits(moons, Dataset(moons.x, moons.y, "three", num_classes=3))


def test_hold_out_partitions_the_training_set_by_class() -> None:
    x = torch.arange(40.0).unsqueeze(-1)
    y = torch.arange(40) % 4 // 3  # a quarter of the examples are of class 1
    test = Dataset(-x, y, "toy", 2)
    splits, validation = Splits(Dataset(x, y, "toy", 2), test).hold_out(0.2, seed=3)
    assert splits.test is test
    assert (len(splits.train), len(validation)) == (32, 8)
    both = torch.cat([splits.train.x, validation.x]).flatten()
    assert torch.equal(both.sort().values, x.flatten())
    for part in (splits.train, validation):
        assert int(part.y.sum()) * 4 == len(part)
        assert torch.equal(part.y, part.x.flatten().long() % 4 // 3)


def test_hold_out_depends_on_its_seed_alone() -> None:
    splits = load("two-moons")
    torch.manual_seed(1)
    first, _ = splits.hold_out(0.1, seed=3)
    torch.manual_seed(2)
    assert_same(first.train, splits.hold_out(0.1, seed=3)[0].train)
    assert not torch.equal(first.train.x, splits.hold_out(0.1, seed=4)[0].train.x)


def test_hold_out_of_a_regression_set() -> None:
    curve = regression_1d(50)
    splits, validation = Splits(curve, curve).hold_out(0.1)
    assert (len(splits.train), len(validation)) == (45, 5)


@pytest.mark.parametrize("fraction", [0, 1, 1.0, -0.1, 1.5, math.nan])
def test_hold_out_rejects_fractions(fraction: float) -> None:
    with pytest.raises(DataError, match="expected a fraction that leaves each class on both sides"):
        load("two-moons").hold_out(fraction)


def test_hold_out_rejects_a_class_of_one() -> None:
    lonely = Dataset(torch.zeros(4, 1), torch.tensor([0, 0, 0, 1]), "lonely", 2)
    with pytest.raises(DataError, match=r"lonely: .* of 4 examples .*use more data"):
        Splits(lonely, lonely).hold_out(0.5)


# Generated sets


def test_two_moons_lie_on_their_half_circles() -> None:
    moons = two_moons(100, noise=0.0)
    std = torch.tensor([3 / 4, 9 / 16 - 1 / math.pi]).sqrt()
    points = moons.x.double() * std + torch.tensor([0.5, 0.25])
    centres = torch.tensor([[0.0, 0.0], [1.0, 0.5]])[moons.y]
    radii = (points - centres).norm(dim=-1)
    torch.testing.assert_close(radii, torch.ones(100), atol=1e-6, rtol=0)
    upwards = (points - centres)[:, 1]
    assert (torch.where(moons.y == 0, upwards, -upwards) > -1e-6).all()


@pytest.mark.parametrize("noise", [0.0, 0.1, 1.0])
def test_two_moons_are_standardized(noise: float) -> None:
    # The points are evenly spaced on the half circles, so the standard error is below 1 / sqrt(N).
    x = two_moons(20_000, noise=noise, seed=1).x
    assert (x.mean(0).abs() < 5 / math.sqrt(20_000)).all()
    assert ((x.std(0) - 1.0).abs() < 5 / math.sqrt(20_000)).all()


def test_regression_follows_its_formula() -> None:
    exact = regression_1d(500, noise=0.0, seed=5)
    x = exact.x.squeeze(-1)
    torch.testing.assert_close(exact.y, torch.sin(2.0 * x) + 0.25 * x, atol=1e-6, rtol=0)
    assert (((x >= -2.0) & (x <= -0.5)) | ((x >= 0.75) & (x <= 2.0))).all()
    share = (x < 0).double().mean()
    assert abs(share - 1.5 / 2.75) < 5 * math.sqrt(0.25 / 500)

    noisy = regression_1d(500, noise=0.1, seed=5)
    assert torch.equal(noisy.x, exact.x)
    error = (noisy.y - exact.y) / 0.1
    assert abs(error.mean()) < 5 / math.sqrt(500)
    assert abs(error.var() - 1.0) < 5 * math.sqrt(2 / 500)


@pytest.mark.parametrize("make", [two_moons, regression_1d])
def test_generated_sets_depend_on_their_seed_alone(make: Callable[..., Dataset]) -> None:
    first = make(30, seed=1)
    np.random.seed(0)  # noqa: NPY002  the point is that the global generator does not matter
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float32)
    assert_same(first, make(30, seed=1))
    assert not torch.equal(first.x, make(30, seed=2).x)
    assert first.x.dtype == torch.float32


@pytest.mark.parametrize("make", [two_moons, regression_1d])
@pytest.mark.parametrize("arguments", [{"num_points": 0}, {"noise": math.nan}, {"noise": math.inf}])
def test_generated_sets_reject(make: Callable[..., Dataset], arguments: dict[str, float]) -> None:
    with pytest.raises(
        ValueError, match=r"of at least 1; got 0|finite number of at least 0; got (nan|inf)"
    ):
        make(**arguments)


# Digits


def test_digits_are_standardized_and_stratified() -> None:
    splits = digits(seed=0)
    train, test = splits.train, splits.test
    assert (len(train), len(test)) == (1437, 360)
    assert train.x.shape[1] == 64 and train.num_classes == 10 and train.x.dtype == torch.float32
    torch.testing.assert_close(train.x.double().mean(), torch.tensor(0.0), atol=1e-5, rtol=0)
    torch.testing.assert_close(train.x.double().std(), torch.tensor(1.0), atol=1e-4, rtol=0)
    counts = torch.bincount(test.y, minlength=10)
    assert counts.min() >= 34 and counts.max() <= 38
    # The test set is scaled by the training set's numbers: its blank pixels have the same value.
    assert test.x.min() == train.x.min()


def test_digits_depend_on_their_seed_alone() -> None:
    assert_same(digits(seed=3).test, digits(seed=3).test)
    assert not torch.equal(digits(seed=3).test.y, digits(seed=4).test.y)


# idx files


def test_idx_folder_reads_what_was_written(folder: Path, arrays: dict[str, np.ndarray]) -> None:
    splits = idx_folder(folder, normalize=False, flatten=False)
    for part, images, labels in (
        (splits.train, TRAIN_IMAGES, TRAIN_LABELS),
        (splits.test, TEST_IMAGES, TEST_LABELS),
    ):
        expected = torch.from_numpy(arrays[images]).to(torch.float32) / 255.0
        assert torch.equal(part.x, expected)
        assert torch.equal(part.y, torch.from_numpy(arrays[labels]))
        assert (part.num_classes, part.name) == (3, "pictures")
    flat = idx_folder(folder, normalize=False)
    assert torch.equal(flat.train.x, splits.train.x.reshape(12, 12))


def test_idx_folder_normalizes_by_the_training_images(
    folder: Path, arrays: dict[str, np.ndarray]
) -> None:
    train = torch.from_numpy(arrays[TRAIN_IMAGES]).double()
    test = torch.from_numpy(arrays[TEST_IMAGES]).double()
    splits = idx_folder(folder, flatten=False)
    expected = (test - train.mean()) / train.std(correction=0)
    torch.testing.assert_close(splits.test.x.double(), expected, atol=1e-5, rtol=0)


def test_idx_folder_reads_files_that_are_not_compressed(folder: Path) -> None:
    compressed = idx_folder(folder)
    for path in list(folder.iterdir()):
        path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()
    plain = idx_folder(str(folder))
    assert_same(plain.train, compressed.train)
    assert_same(plain.test, compressed.test)


@pytest.mark.parametrize("stem", [TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS])
def test_idx_folder_names_a_missing_file(folder: Path, stem: str) -> None:
    (folder / f"{stem}.gz").unlink()
    with pytest.raises(
        DataError, match=rf"expected {stem}\.gz or {stem} in .*pictures, got .*-ubyte"
    ):
        idx_folder(folder)


def damage_cut_header(raw: bytes) -> bytes:
    return gzip.compress(raw[:7])


def damage_empty(raw: bytes) -> bytes:
    return gzip.compress(b"")


def damage_truncated(raw: bytes) -> bytes:
    return gzip.compress(raw[:-1])


def damage_trailing(raw: bytes) -> bytes:
    return gzip.compress(raw + b"\0")


def damage_type(raw: bytes) -> bytes:
    return gzip.compress(raw[:2] + b"\x0d" + raw[3:])  # 0x0d: floats


def damage_dimensions(raw: bytes) -> bytes:
    return gzip.compress(raw[:3] + b"\x02" + raw[4:])


def damage_size(raw: bytes) -> bytes:
    return gzip.compress(raw[:4] + b"\xff\xff\xff\xff" + raw[8:])


def damage_zero(raw: bytes) -> bytes:
    return gzip.compress(raw[:4] + b"\0\0\0\0" + raw[8 : 4 + 4 * raw[3]])


def damage_not_gzip(raw: bytes) -> bytes:
    return raw


def damage_cut_gzip(raw: bytes) -> bytes:
    return gzip.compress(raw)[:-9]


def damage_checksum(raw: bytes) -> bytes:
    packed = bytearray(gzip.compress(raw))
    packed[-8] ^= 1
    return bytes(packed)


def damage_stream(raw: bytes) -> bytes:
    packed = bytearray(gzip.compress(raw))
    packed[10] = 0xFF  # a reserved deflate block type
    return bytes(packed)


@pytest.mark.parametrize("stem", [TRAIN_IMAGES, TEST_LABELS])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_cut_header, "in a header of (16|8) bytes, got 7 bytes"),
        (damage_empty, "got 0 bytes"),
        (damage_truncated, "bytes of header and .* of content, got .* in all"),
        (damage_trailing, "bytes of header and .* of content, got .* in all"),
        (damage_type, "the magic number 0x0000080[13] .* begin with 0x00000d0[13]"),
        (damage_dimensions, "the magic number 0x0000080[13] .* begin with 0x00000802"),
        (damage_size, "4294967295"),
        (damage_zero, "bytes of header and 0.* of content"),
        (damage_not_gzip, "to be a whole file, got Not a gzipped file"),
        (damage_cut_gzip, "to be a whole file, got .*ended before"),
        (damage_checksum, "to be a whole file, got CRC check failed"),
        (damage_stream, "to be a whole file, got .*invalid block type"),
    ],
)
def test_idx_folder_names_a_damaged_file(
    folder: Path,
    arrays: dict[str, np.ndarray],
    stem: str,
    damage: Callable[[bytes], bytes],
    message: str,
) -> None:
    path = folder / f"{stem}.gz"
    path.write_bytes(damage(idx_bytes(arrays[stem])))
    with pytest.raises(DataError, match=rf"{stem}\.gz .*{message}.*download it again"):
        idx_folder(folder)


def test_idx_folder_rejects_images_where_labels_should_be(
    folder: Path, arrays: dict[str, np.ndarray]
) -> None:
    write_idx(folder / TRAIN_LABELS, arrays[TRAIN_IMAGES])
    with pytest.raises(DataError, match=r"0x00000801 .* begin with 0x00000803"):
        idx_folder(folder)


def test_idx_folder_rejects_counts_that_differ(folder: Path) -> None:
    write_idx(folder / TRAIN_LABELS, np.zeros(11))
    with pytest.raises(DataError, match=r"pictures/train-.*got 12 images and 11 labels"):
        idx_folder(folder)


def test_idx_folder_rejects_test_images_of_another_size(folder: Path) -> None:
    write_idx(folder / TEST_IMAGES, np.arange(6 * 5).reshape(6, 5, 1))
    with pytest.raises(DataError, match="take both from one source"):
        idx_folder(folder)


def test_idx_folder_rejects_blank_images(folder: Path) -> None:
    write_idx(folder / TRAIN_IMAGES, np.full((12, 3, 4), 9))
    with pytest.raises(DataError, match="got one brightness in all"):
        idx_folder(folder)
    assert len(idx_folder(folder, normalize=False).train) == 12


def test_idx_folder_rejects_labels_out_of_range(folder: Path) -> None:
    with pytest.raises(DataError, match=r"expected int64 labels .* in 0 \.\. 1, got .* 0 \.\. 2"):
        idx_folder(folder, num_classes=2)
    write_idx(folder / TEST_LABELS, np.full(6, 3))
    with pytest.raises(DataError, match=r"in 3 \.\. 3"):
        idx_folder(folder)


# USPS


@pytest.fixture
def usps_arrays() -> dict[str, np.ndarray]:
    """Seven training and four test images, brightness times 2000."""
    generator = np.random.default_rng(8)
    return {
        "x_train": generator.integers(0, 2001, (7, 16, 16)).astype(np.uint16),
        "y_train": np.array([0, 1, 2, 3, 4, 9, 9], np.uint8),
        "x_test": generator.integers(0, 2001, (4, 16, 16)).astype(np.uint16),
        "y_test": np.array([0, 1, 9, 2], np.uint8),
    }


def write_usps(folder: Path, arrays: dict[str, np.ndarray], *, packed: bool = True) -> Path:
    (np.savez_compressed if packed else np.savez)(folder / "usps.npz", **arrays)  # pyright: ignore
    return folder / "usps.npz"


@pytest.mark.parametrize("packed", [True, False])
def test_usps_folder_reads_what_was_written(
    tmp_path: Path, usps_arrays: dict[str, np.ndarray], packed: bool
) -> None:
    write_usps(tmp_path, usps_arrays, packed=packed)
    splits = usps_folder(tmp_path, normalize=False, flatten=False)
    for part, dataset in (("train", splits.train), ("test", splits.test)):
        expected = torch.from_numpy(usps_arrays[f"x_{part}"] / 2000.0)
        torch.testing.assert_close(dataset.x.double(), expected, atol=1e-7, rtol=0)
        assert dataset.y.tolist() == usps_arrays[f"y_{part}"].tolist()
        assert (dataset.name, dataset.num_classes) == ("usps", 10)
        assert (dataset.x.dtype, dataset.y.dtype) == (torch.float32, torch.int64)
    flat = usps_folder(str(tmp_path), normalize=False)
    assert torch.equal(flat.test.x, splits.test.x.reshape(4, 256))


def test_usps_folder_keeps_the_ends_of_the_range(
    tmp_path: Path, usps_arrays: dict[str, np.ndarray]
) -> None:
    usps_arrays["x_train"][0], usps_arrays["x_train"][1] = 0, 2000
    write_usps(tmp_path, usps_arrays)
    x = usps_folder(tmp_path, normalize=False).train.x
    assert (x[0].unique().tolist(), x[1].unique().tolist()) == ([0.0], [1.0])


def test_usps_folder_reads_flat_images(tmp_path: Path, usps_arrays: dict[str, np.ndarray]) -> None:
    write_usps(tmp_path, usps_arrays)
    square = usps_folder(tmp_path)
    usps_arrays["x_test"] = usps_arrays["x_test"].reshape(4, 256)
    write_usps(tmp_path, usps_arrays)
    assert_same(usps_folder(tmp_path).test, square.test)
    assert usps_folder(tmp_path, flatten=False).test.x.shape == (4, 16, 16)


def test_usps_folder_normalizes_by_the_training_images(
    tmp_path: Path, usps_arrays: dict[str, np.ndarray]
) -> None:
    usps_arrays["x_test"] //= 4  # a test set of another mean and spread
    write_usps(tmp_path, usps_arrays)
    train, test = (usps_arrays[key].reshape(-1, 256).astype(float) for key in ("x_train", "x_test"))
    expected = torch.from_numpy((test - train.mean()) / train.std())
    found = usps_folder(tmp_path).test.x.double()
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x_train": None}, r"hold x_train, .*, got y_train, x_test, y_test and no x_train;"),
        ({"x_test": None, "y_test": None}, "got x_train, y_train and no x_test and no y_test;"),
        (
            {"x_train": np.zeros((7, 16, 16))},
            r"x_train of type uint16 .*, got float64 \(7, 16, 16\)",
        ),
        ({"x_test": np.zeros((4, 28, 28), np.uint16)}, r"x_test .* or \(N, 256\).*\(4, 28, 28\)"),
        ({"x_test": np.zeros((4, 255), np.uint16)}, r"got uint16 \(4, 255\)"),
        ({"x_test": np.zeros((16, 16), np.uint16)}, r"got uint16 \(16, 16\)"),
        ({"x_test": np.zeros((), np.uint16)}, r"got uint16 \(\)"),
        ({"x_test": np.zeros((0, 16, 16), np.uint16)}, r"N at least 1, got uint16 \(0, 16, 16\)"),
        ({"y_test": np.zeros(4)}, r"y_test of type uint8 and shape \(N\).*got float64 \(4,\)"),
        ({"y_test": np.zeros((4, 1), np.uint8)}, r"got uint8 \(4, 1\)"),
        ({"y_test": np.zeros(0, np.uint8)}, r"N at least 1, got uint8 \(0,\)"),
        ({"y_train": np.zeros(6, np.uint8)}, "one of y_train for each of x_train, got 6 for 7"),
        ({"y_test": np.zeros(5, np.uint8)}, "one of y_test for each of x_test, got 5 for 4"),
        ({"x_test": np.full((4, 256), 2001, np.uint16)}, r"x_test in 0 \.\. 2000, got 2001"),
        ({"y_test": np.full(4, 10, np.uint8)}, r"y_test in 0 \.\. 9, got 10"),
        ({"y_test": np.array([None] * 4)}, "whole npz file, got Object arrays cannot be loaded"),
    ],
)
def test_usps_folder_rejects_wrong_arrays(
    tmp_path: Path,
    usps_arrays: dict[str, np.ndarray],
    change: dict[str, np.ndarray | None],
    message: str,
) -> None:
    changed = {k: v for k, v in (usps_arrays | change).items() if v is not None}
    path = write_usps(tmp_path, changed)
    with pytest.raises(DataError, match=rf"expected {path} to .*{message}.*make it again"):
        usps_folder(tmp_path)


def test_usps_folder_ignores_further_arrays(
    tmp_path: Path, usps_arrays: dict[str, np.ndarray]
) -> None:
    write_usps(tmp_path, usps_arrays | {"notes": np.array([None])})  # cannot be read unpickled
    assert len(usps_folder(tmp_path).train) == 7


def test_usps_folder_names_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"expected usps.npz in {tmp_path}, got no files; add it"):
        usps_folder(tmp_path)
    (tmp_path / "usps.h5").touch()
    with pytest.raises(DataError, match=r"got usps\.h5; add it there"):
        usps_folder(tmp_path)
    with pytest.raises(DataError, match="absent, where there is none"):
        usps_folder(tmp_path / "absent")


@pytest.mark.parametrize("content", [b"", b"PK", b"PK\3\4" + bytes(40), b"\x80\4N."])
def test_usps_folder_names_a_file_of_another_kind(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "usps.npz").write_bytes(content)
    with pytest.raises(DataError, match=rf"usps\.npz .*got {len(content)} bytes of something else"):
        usps_folder(tmp_path)


@pytest.mark.parametrize("packed", [True, False])
def test_usps_folder_never_raises_anything_else_for_a_damaged_file(
    tmp_path: Path, usps_arrays: dict[str, np.ndarray], packed: bool
) -> None:
    path = write_usps(tmp_path, usps_arrays, packed=packed)
    raw, whole = path.read_bytes(), usps_folder(tmp_path)
    refused = 0
    for place in range(0, len(raw), 41):
        for damaged in (raw[:place], raw[:place] + bytes([raw[place] ^ 0x41]) + raw[place + 1 :]):
            path.write_bytes(damaged)
            try:
                splits = usps_folder(tmp_path)
            except DataError as error:
                assert str(path) in str(error)
                refused += 1
            else:  # a byte that says nothing about the numbers: a date, say
                assert len(damaged) == len(raw)
                assert_same(splits.train, whole.train)
                assert_same(splits.test, whole.test)
    assert refused > 0.9 * 2 * len(range(0, len(raw), 41))


# Colour images


@pytest.fixture
def colours() -> dict[str, np.ndarray]:
    """Ten training and four test images in three classes, channels first."""
    generator = np.random.default_rng(9)
    # Channels of brightness and contrast of their own.
    spread, start = np.array([200, 100, 30])[:, None, None], np.array([0, 100, 220])[:, None, None]
    return {
        f"{what}_{part}": values.astype(np.uint8)
        for part, size in (("train", 10), ("test", 4))
        for what, values in (
            ("x", start + spread * generator.random((size, 3, 32, 32))),
            ("y", np.arange(size) % 3),
        )
    }


def write_cifar(folder: Path, arrays: dict[str, np.ndarray]) -> Path:
    """The binary layout: two training images per batch."""
    folder.mkdir(exist_ok=True)
    parts = {f"data_batch_{i + 1}.bin": ("train", slice(2 * i, 2 * i + 2)) for i in range(5)}
    for name, (part, rows) in (parts | {"test_batch.bin": ("test", slice(None))}).items():
        x, y = arrays[f"x_{part}"][rows], arrays[f"y_{part}"][rows]
        records = (bytes([label]) + image.tobytes() for image, label in zip(x, y, strict=True))
        (folder / name).write_bytes(b"".join(records))
    return folder


def write_cifar_npz(folder: Path, arrays: dict[str, np.ndarray], name: str = "c.npz") -> Path:
    folder.mkdir(exist_ok=True)
    np.savez(folder / name, **arrays)  # pyright: ignore
    return folder


def channels_last(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {k: v.transpose(0, 2, 3, 1) if k[0] == "x" else v for k, v in arrays.items()}


def test_cifar_folder_reads_every_layout(tmp_path: Path, colours: dict[str, np.ndarray]) -> None:
    column = {k: v[:, None].astype(np.int64) if k[0] == "y" else v for k, v in colours.items()}
    folders = (
        write_cifar(tmp_path / "pictures", colours),
        write_cifar_npz(tmp_path / "first", colours),
        write_cifar_npz(tmp_path / "last", channels_last(colours)),
        write_cifar_npz(tmp_path / "column", channels_last(column)),
    )
    for folder in folders:
        splits = cifar_folder(folder, normalize=False, flatten=False)
        assert splits.preprocessing is None
        for part, dataset in (("train", splits.train), ("test", splits.test)):
            expected = torch.from_numpy(colours[f"x_{part}"]).to(torch.float32) / 255.0
            assert torch.equal(dataset.x, expected) and dataset.x.is_contiguous()
            assert dataset.y.tolist() == colours[f"y_{part}"].tolist()
            assert (dataset.name, dataset.num_classes) == (folder.name, 3)
            assert (dataset.x.dtype, dataset.y.dtype) == (torch.float32, torch.int64)
        flat = cifar_folder(str(folder), normalize=False)
        assert torch.equal(flat.test.x, splits.test.x.reshape(4, 3 * 32 * 32))
    assert cifar_folder(folders[0], num_classes=10).train.num_classes == 10
    write_cifar_npz(folders[0], {})  # an npz file beside the binary ones is not read
    assert len(cifar_folder(folders[0]).train) == 10


def test_cifar_folder_takes_images_of_other_sizes(
    tmp_path: Path, colours: dict[str, np.ndarray]
) -> None:
    small = {k: v[..., :5, :7] if k[0] == "x" else v for k, v in colours.items()}
    splits = cifar_folder(write_cifar_npz(tmp_path, channels_last(small)), flatten=False)
    assert splits.train.x.shape == (10, 3, 5, 7)


def test_cifar_folder_normalizes_each_channel_by_the_training_images(
    tmp_path: Path, colours: dict[str, np.ndarray]
) -> None:
    colours["x_test"] //= 2  # a test set of another mean and spread
    splits = cifar_folder(write_cifar(tmp_path, colours), flatten=False)
    train, test = (colours[key] / 255.0 for key in ("x_train", "x_test"))
    mean, std = train.mean((0, 2, 3)), train.std((0, 2, 3))
    expected = (test - mean[:, None, None]) / std[:, None, None]
    torch.testing.assert_close(
        splits.test.x.double(), torch.from_numpy(expected), atol=1e-5, rtol=0
    )
    preprocessing = splits.preprocessing
    assert preprocessing is not None and preprocessing.divisor == 255.0
    np.testing.assert_allclose(preprocessing.mean, mean, rtol=1e-6)
    np.testing.assert_allclose(preprocessing.std, std, rtol=1e-6)
    # What a model file does to the pixels gives the same bits.
    means, stds = (np.float32(c)[:, None, None] for c in preprocessing[1:])
    made = (colours["x_test"].astype(np.float32) / np.float32(255.0) - means) / stds
    assert np.array_equal(made, splits.test.x.numpy())
    flat = cifar_folder(tmp_path)
    assert flat.preprocessing == preprocessing
    assert torch.equal(flat.test.x, splits.test.x.flatten(1))
    assert splits.hold_out(0.4)[0].preprocessing == preprocessing


@pytest.mark.parametrize("name", ["data_batch_1.bin", "data_batch_4.bin", "test_batch.bin"])
def test_cifar_folder_names_a_missing_batch(
    tmp_path: Path, colours: dict[str, np.ndarray], name: str
) -> None:
    (write_cifar(tmp_path, colours) / name).unlink()
    with pytest.raises(DataError, match=f"expected {name} in {tmp_path}, got .*_batch.*; add it"):
        cifar_folder(tmp_path)


@pytest.mark.parametrize("name", ["data_batch_3.bin", "test_batch.bin"])
@pytest.mark.parametrize(("size", "over"), [(0, 0), (1, 1), (3072, 3072), (3074, 1), (6145, 3072)])
def test_cifar_folder_names_a_batch_of_the_wrong_size(
    tmp_path: Path, colours: dict[str, np.ndarray], name: str, size: int, over: int
) -> None:
    path = write_cifar(tmp_path, colours) / name
    path.write_bytes(bytes(size))
    message = f"expected {path} to hold whole records of 3073 bytes.*got {size} bytes, {over} after"
    with pytest.raises(DataError, match=message):
        cifar_folder(tmp_path)


def test_cifar_folder_names_missing_files(tmp_path: Path, colours: dict[str, np.ndarray]) -> None:
    with pytest.raises(DataError, match=r"expected data_batch_1\.bin or cifar\.npz in .* no files"):
        cifar_folder(tmp_path)
    with pytest.raises(DataError, match="absent, where there is none"):
        cifar_folder(tmp_path / "absent")
    for name in ("one.npz", "two.npz"):
        write_cifar_npz(tmp_path, colours, name)
    with pytest.raises(DataError, match=r"expected one npz file in .*got one\.npz, two\.npz; name"):
        cifar_folder(tmp_path)
    (tmp_path / "two.npz").unlink()
    (tmp_path / "one.npz").write_bytes(b"PK\3\4" + bytes(40))
    with pytest.raises(DataError, match=r"one\.npz .*got 44 bytes of something else"):
        cifar_folder(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x_train": None}, r"hold x_train, .*, got y_train, x_test, y_test and no x_train;"),
        ({"x_train": np.zeros((10, 3, 32, 32))}, r"x_train of type uint8 .*got float64"),
        ({"x_test": np.zeros((4, 32, 32), np.uint8)}, r"got uint8 \(4, 32, 32\)"),
        ({"x_test": np.zeros((4, 32, 32, 4), np.uint8)}, r"columns, 3\) or \(N, 3, .*32, 4\)"),
        ({"x_test": np.zeros((4, 3, 32, 3), np.uint8)}, r"got uint8 \(4, 3, 32, 3\)"),
        ({"x_test": np.zeros((0, 3, 32, 32), np.uint8)}, "N at least 1, got uint8"),
        ({"x_test": np.zeros((), np.uint8)}, r"got uint8 \(\)"),
        ({"y_test": np.zeros(4)}, r"y_test of whole numbers .*got float64 \(4,\)"),
        ({"y_test": np.zeros((4, 10), np.uint8)}, r"got uint8 \(4, 10\)"),
        ({"y_test": np.zeros((), np.uint8)}, r"got uint8 \(\)"),
        ({"y_test": np.zeros(0, np.uint8)}, r"N at least 1, got uint8 \(0,\)"),
        ({"y_train": np.zeros(9, np.uint8)}, "one of y_train for each of x_train, got 9 for 10"),
        ({"y_test": np.array([None] * 4)}, "whole npz file, got Object arrays cannot be loaded"),
    ],
)
def test_cifar_folder_rejects_wrong_arrays(
    tmp_path: Path,
    colours: dict[str, np.ndarray],
    change: dict[str, np.ndarray | None],
    message: str,
) -> None:
    changed = {k: v for k, v in (colours | change).items() if v is not None}
    path = write_cifar_npz(tmp_path, changed) / "c.npz"
    with pytest.raises(DataError, match=rf"expected {path} to .*{message}.*make it again"):
        cifar_folder(tmp_path)


def test_cifar_folder_rejects_blank_channels_and_unknown_labels(
    tmp_path: Path, colours: dict[str, np.ndarray]
) -> None:
    grey = colours | {"x_train": colours["x_train"].copy(), "y_test": np.array([0, 1, 2, 3])}
    folder = write_cifar_npz(tmp_path, grey)
    with pytest.raises(DataError, match=r"in 0 \.\. 2, got torch.int64 \(4,\) in 0 \.\. 3"):
        cifar_folder(folder)
    grey["x_train"][:, 1], grey["y_test"][3] = 7, 0
    write_cifar_npz(tmp_path, grey)
    with pytest.raises(DataError, match="got one brightness in all of 1 of 3 channels; check"):
        cifar_folder(folder)
    assert len(cifar_folder(folder, normalize=False).train) == 10


def test_load_finds_cifar_in_the_folder_or_its_subfolder(
    tmp_path: Path, colours: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_cifar(tmp_path / "cifar", colours)
    monkeypatch.setenv("BAYESBIN_DATA", str(tmp_path))
    for splits in (load("cifar", folder), load("cifar", tmp_path), load("cifar")):
        assert splits.train.name == "cifar"
        assert_same(splits.test, cifar_folder(folder).test)
    images = load("cifar", flatten=False)
    assert images.test.x.shape == (4, 3, 32, 32)
    assert images.preprocessing == splits.preprocessing


def test_load_keeps_images(
    folder: Path, tmp_path: Path, usps_arrays: dict[str, np.ndarray]
) -> None:
    for name in ("idx", "mnist", "fashion-mnist"):
        assert load(name, folder, flatten=False).train.x.shape == (12, 3, 4)
    write_usps(tmp_path, usps_arrays)
    assert load("usps", tmp_path, flatten=False).train.x.shape == (7, 16, 16)


# Folders and names


def test_data_folder_prefers_the_argument(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BAYESBIN_DATA", str(folder))
    assert data_folder(tmp_path) == tmp_path.resolve()
    assert data_folder() == folder.resolve()
    assert data_folder("") == folder.resolve()


def test_data_folder_expands_the_home_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder.parent))
    assert data_folder("~/pictures") == folder.resolve()


def test_data_folder_rejects(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BAYESBIN_DATA", raising=False)
    with pytest.raises(DataError, match=r"got none; name it with --data FOLDER or .*BAYESBIN_DATA"):
        data_folder()
    for path in (folder / "absent", folder / f"{TRAIN_IMAGES}.gz"):
        with pytest.raises(DataError, match=f"got {path}, where there is none; name it"):
            data_folder(path)
    monkeypatch.setenv("BAYESBIN_DATA", str(folder / "absent"))
    with pytest.raises(DataError, match="absent, where there is none"):
        data_folder()


def test_load_generates() -> None:
    moons = load("two-moons", seed=2)
    assert (len(moons.train), len(moons.test)) == (200, 200)
    assert torch.bincount(moons.train.y).tolist() == [100, 100]
    assert not torch.isin(moons.test.x[:, 0], moons.train.x[:, 0]).any()
    assert_same(load("digits", seed=2).train, digits(2).train)


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_load_finds_the_folder_or_its_subfolder(
    folder: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    direct = load(name, folder)
    folder.rename(folder.with_name(name))
    monkeypatch.setenv("BAYESBIN_DATA", str(folder.parent))
    for splits in (direct, load(name, folder.parent), load(name)):
        assert (splits.train.name, splits.train.num_classes) == (name, 10)
        assert_same(splits.test, direct.test)
    idx = load("idx", folder.with_name(name))
    assert torch.equal(idx.test.x, direct.test.x)
    assert idx.test.num_classes == 3


def test_load_tells_mnist_from_fashion_mnist(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The test's own labels stand in for those of Fashion-MNIST.
    checksum = zlib.crc32(bytes(index % 3 for index in range(12)))
    monkeypatch.setattr(bayesbin.data.named, "_LABEL_CHECKSUMS", {checksum: "fashion-mnist"})
    assert load("fashion-mnist", folder).train.name == "fashion-mnist"
    with pytest.raises(DataError, match=r"expected mnist in .*pictures, got fashion-mnist; name"):
        load("mnist", folder)


def test_load_finds_usps_in_the_folder_or_its_subfolder(
    tmp_path: Path, usps_arrays: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "usps"
    folder.mkdir()
    write_usps(folder, usps_arrays)
    monkeypatch.setenv("BAYESBIN_DATA", str(tmp_path))
    for splits in (load("usps", folder), load("usps", tmp_path), load("usps")):
        assert splits.train.name == "usps"
        assert_same(splits.test, usps_folder(folder).test)
    # A subfolder of the name is preferred: a file beside it is not read.
    write_usps(tmp_path, usps_arrays | {"y_test": np.full(4, 5, np.uint8)})
    assert load("usps", tmp_path).test.y.tolist() == [0, 1, 9, 2]


def test_load_rejects_unknown_names() -> None:
    with pytest.raises(ValueError, match=f"one of {', '.join(DATASETS)}; got 'svhn'"):
        load("svhn")


# Batches


def counted(size: int) -> tuple[Tensor, Tensor]:
    return torch.arange(float(size)).unsqueeze(-1), torch.arange(size)


@pytest.mark.parametrize(
    ("size", "batch_size", "lengths"),
    [(10, 4, [4, 4, 2]), (8, 4, [4, 4]), (3, 4, [3]), (1, 1, [1]), (3, 1, [1, 1, 1])],
)
@pytest.mark.parametrize("shuffle", [True, False])
def test_batches_cover_the_data_once(
    size: int, batch_size: int, lengths: list[int], shuffle: bool
) -> None:
    batches = Batches(counted(size), batch_size, shuffle=shuffle)
    assert (len(batches), batches.dataset_size) == (len(lengths), size)
    for _ in range(2):  # a second pass over the same object
        seen = list(batches)
        assert [len(x) for x, _ in seen] == lengths
        for x, y in seen:
            assert torch.equal(x.squeeze(-1).long(), y)
        order = torch.cat([y for _, y in seen])
        assert torch.equal(order.sort().values if shuffle else order, torch.arange(size))


def test_batches_are_ordered_by_the_seed_at_the_start_of_a_pass() -> None:
    batches = Batches(counted(64), 10)

    def order(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return torch.cat([y for _, y in batches])

    first = order(1)
    assert torch.equal(first, order(1))
    assert not torch.equal(first, order(2))
    torch.manual_seed(1)
    one, two = (torch.cat([y for _, y in batches]) for _ in range(2))
    assert torch.equal(one, first)
    assert not torch.equal(two, first)  # without a seed in between, a new order


def test_batches_draw_nothing_after_a_pass_has_begun() -> None:
    batches = Batches(counted(64), 10)
    torch.manual_seed(1)
    expected = torch.cat([y for _, y in batches])
    torch.manual_seed(1)
    started = iter(batches)
    state = torch.get_rng_state()
    torch.rand(5)  # a training step that draws from the same generator
    assert torch.equal(torch.cat([y for _, y in started]), expected)
    torch.manual_seed(1)
    iter(batches)
    assert torch.equal(torch.get_rng_state(), state)


def test_batches_in_file_order_draw_nothing() -> None:
    state = torch.get_rng_state()
    list(Batches(counted(8), 3, shuffle=False))
    assert torch.equal(torch.get_rng_state(), state)


def test_batches_are_copies() -> None:
    x, y = counted(4)
    for inputs, _ in Batches((x, y), 2, shuffle=False):
        inputs.zero_()
    assert torch.equal(x, counted(4)[0])


def test_batches_of_a_dataset_and_of_its_tensors_agree() -> None:
    moons = two_moons(21)
    torch.manual_seed(4)
    of_dataset = list(Batches(moons, 4))
    torch.manual_seed(4)
    for (x, y), (x2, y2) in zip(of_dataset, Batches((moons.x, moons.y), 4), strict=True):
        assert torch.equal(x, x2) and torch.equal(y, y2)


def crops(x: Tensor, padding: int = 4, *, flip: bool = True, seed: int = 0) -> Tensor:
    return RandomCropFlip(padding, flip)(x, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(300, 3, 5, 7), (300, 5, 7)], ids=str)
def test_crops_are_windows_of_the_padded_image_or_its_mirror(shape: tuple[int, ...]) -> None:
    x = torch.rand(shape) + 1.0
    found, padding = crops(x, 2), 2
    assert found.shape == x.shape and found.is_contiguous()
    padded = torch.nn.functional.pad(x, [padding] * 4)
    seen: set[tuple[int, int, bool]] = set()
    for image, crop in zip(padded, found, strict=True):
        places = []
        for top, left in np.ndindex(2 * padding + 1, 2 * padding + 1):
            window = image[..., top : top + 5, left : left + 7]
            places += [(top, left, True)] * torch.equal(crop, window.flip(-1))
            places += [(top, left, False)] * torch.equal(crop, window)
        assert len(places) == 1
        seen |= set(places)
    assert len({place[:2] for place in seen}) == 25  # all of them, up to 25 (24/25)^300 = 1e-4
    assert len(seen) > 40


def test_crops_are_drawn_uniformly_and_independently() -> None:
    """Where a bright pixel goes says how far its image was shifted."""
    count, padding = 20_000, 1
    x = torch.zeros(count, 1, 5, 5)
    x[:, 0, 2, 2] = 1.0
    x[:, 0, 2, 1] = 0.5  # to its left; to its right in a mirror
    rows, columns = (crops(x, padding) == 1.0).nonzero()[:, 2:].T
    places = torch.bincount(3 * (rows - 1) + columns - 1, minlength=9) / count
    assert len(rows) == count and len(places) == 9
    assert (places - 1 / 9).abs().max() < 4 * math.sqrt(1 / 9 * 8 / 9 / count)
    mirrored = (crops(x, 0)[:, 0, 2, 3] == 0.5).double().mean()
    assert abs(mirrored - 0.5) < 4 * math.sqrt(1 / 4 / count)
    assert torch.equal(crops(x, 0, flip=False), x)
    # Crops are the same with mirrors and without.
    kept = (crops(x, padding, flip=False) == 1.0).nonzero()[:, 2]
    assert torch.equal(kept, rows)


def test_crops_depend_on_the_generator_alone() -> None:
    x = torch.rand(40, 3, 6, 6)
    before, state = x.clone(), torch.get_rng_state()
    first = crops(x, seed=1)
    assert torch.equal(x, before) and torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(5)
    assert torch.equal(first, crops(x, seed=1))
    assert not torch.equal(first, crops(x, seed=2))


def test_crops_reject() -> None:
    for padding in (-1, 1.5, True):
        with pytest.raises(
            ValueError, match=f"padding to be a whole number of at least 0; got {padding}"
        ):
            RandomCropFlip(padding)  # pyright: ignore
    with pytest.raises(DataError, match=r"got shape \(2, 3072\); load them with flatten=False"):
        crops(torch.zeros(2, 3072))


def test_batches_transform_by_the_seed_at_the_start_of_a_pass() -> None:
    data = torch.rand(64, 1, 6, 6), torch.arange(64)
    plain, batches = Batches(data, 10), Batches(data, 10, transform=RandomCropFlip(2))

    def of(batches: Batches, seed: int) -> tuple[Tensor, Tensor]:
        torch.manual_seed(seed)
        x, y = zip(*batches, strict=True)
        return torch.cat(x), torch.cat(y)

    x, y = of(batches, 1)
    assert torch.equal(y, of(plain, 1)[1])  # in the order of the batches as they are
    assert torch.equal(x, of(batches, 1)[0])
    assert not torch.equal(x, of(plain, 1)[0])
    again, order = of(batches, 2)
    assert not torch.equal(again[order.argsort()], x[y.argsort()])
    # Nothing that draws between the batches changes them.
    torch.manual_seed(1)
    started, seen = iter(batches), []
    for inputs, _ in started:
        seen.append(inputs)
        torch.rand(5)
    assert torch.equal(torch.cat(seen), x)
    # Each batch, and each pass, has draws of its own.
    same = Batches((data[0][:1].expand(64, 1, 6, 6), data[1]), 32, transform=RandomCropFlip(2))
    (one, _), (two, _) = same
    assert not torch.equal(one, two)
    assert not torch.equal(next(iter(same))[0], one)


def test_batches_reject() -> None:
    for batch_size in (0, -3):
        with pytest.raises(
            ValueError, match=f"batch_size to be a whole number of at least 1; got {batch_size}"
        ):
            Batches(counted(4), batch_size)
    with pytest.raises(DataError, match="at least one example"):
        Batches(counted(0), 1)
    with pytest.raises(DataError, match=r"x of shape \(4, 1\) and y of shape \(3,\)"):
        Batches((counted(4)[0], counted(3)[1]), 1)


@pytest.fixture
def table_folder(tmp_path):
    files = {"data": "1 2 5\n3 4 6\n7 8 9\n", "index_features": "0\n1\n", "index_target": "2\n",
             "index_train_0": "2\n0\n", "index_test_0": "1\n"}  # fmt: skip
    for name, text in files.items():
        (tmp_path / f"{name}.txt").write_text(text)
    return tmp_path


def test_a_regression_table_comes_in_the_order_of_its_split(table_folder):
    splits = uci_folder(table_folder)
    assert splits.train.x.tolist() == [[7, 8], [1, 2]] and splits.train.y.tolist() == [9, 5]
    assert splits.test.x.tolist() == [[3, 4]] and splits.test.y.tolist() == [6]
    assert splits.train.num_classes is None


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("data", "1 2 5\n3 oh 6\n", "data.txt to hold rows of numbers"),
        ("data", "", "data.txt to hold rows of numbers"),
        ("data", "1 2 5\n3 nan 6\n7 8 9\n", "NaN or infinite"),
        ("index_test_0", "3\n", "index_test_0.txt to hold different rows in 0 .. 2"),
        ("index_test_0", "0.5\n", "index_test_0.txt to hold different rows in 0 .. 2"),
        ("index_test_0", "1\n1\n", "index_test_0.txt to hold different rows in 0 .. 2"),
        ("index_test_0", "2\n", "no row in common, got 1"),
        ("index_target", "1\n", "no feature"),
        ("index_features", "-1\n", "different columns in 0 .. 2"),
    ],
)
def test_a_damaged_regression_table_is_refused(table_folder, file, text, message):
    (table_folder / f"{file}.txt").write_text(text)
    with pytest.raises(DataError, match=message):
        uci_folder(table_folder)


def test_a_split_that_is_not_there_is_named(table_folder):
    with pytest.raises(DataError, match="index_train_7"):
        uci_folder(table_folder, split=7)
