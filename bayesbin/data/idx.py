"""idx files, the layout of MNIST: an image file and a label file each for training and test."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bayesbin.data.dataset import DataError, Dataset, Splits, standardize
from bayesbin.data.folders import data_folder, file_in

_WHITE = 255.0


def idx_folder(
    folder: str | Path,
    *,
    normalize: bool = True,
    flatten: bool = True,
    num_classes: int | None = None,
) -> Splits:
    """The images and labels of the four idx files of MNIST's layout, each gzipped (.gz) or not.

    x is (N, rows * columns), with ``flatten=False`` (N, rows, columns): brightness in [0, 1], if
    ``normalize`` shifted and scaled by its mean and standard deviation over all training pixels.
    ``num_classes`` None: the largest training label + 1. Raises DataError, naming the file, if one
    is missing, damaged, truncated, too long or of another kind, or images and labels differ in
    number. Source: Y. LeCun et al., Gradient-based learning applied to document recognition, 1998.
    """
    root = data_folder(Path(folder))
    sets = []
    for part in ("train", "t10k"):
        images = _read_idx(root, f"{part}-images-idx3-ubyte", num_dims=3)
        labels = _read_idx(root, f"{part}-labels-idx1-ubyte", num_dims=1).long()
        if len(images) != len(labels):
            came = f"{len(images)} images and {len(labels)} labels; take both from one source"
            raise DataError(f"expected one label per image in {root}/{part}-*, got {came}")
        num_classes = int(labels.max()) + 1 if num_classes is None else num_classes
        x = images.to(torch.float32).div_(_WHITE)
        sets.append(Dataset(x.flatten(1) if flatten else x, labels, root.name, num_classes))
    return standardize(Splits(*sets), _WHITE) if normalize else Splits(*sets)


def _read_idx(folder: Path, stem: str, num_dims: int) -> Tensor:
    """The bytes of an idx file: 0 0 8 num_dims, a big-endian uint32 per dimension, the content."""
    path = file_in(folder, f"{stem}.gz", stem)
    remedy = "check that it is the right file, or download it again"
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"expected {path} to be a whole file, got {error}; {remedy}") from error
    header, magic = 4 + 4 * num_dims, bytes([0, 0, 8, num_dims])
    if len(content) < header or content[:4] != magic:
        came = f"{len(content)} bytes that begin with 0x{content[:4].hex()}"
        wanted = f"the magic number 0x{magic.hex()} in a header of {header} bytes"
        raise DataError(f"expected {path} to begin with {wanted}, got {came}; {remedy}")
    sizes = np.frombuffer(content[4:header], dtype=">u4").tolist()
    if 0 in sizes or len(content) != header + math.prod(sizes):
        wanted = f"{header} bytes of header and {' x '.join(map(str, sizes))} (not 0) of content"
        raise DataError(f"expected {path} to hold {wanted}, got {len(content)} in all; {remedy}")
    return torch.frombuffer(bytearray(content), dtype=torch.uint8, offset=header).reshape(sizes)
