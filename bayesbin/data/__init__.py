"""Small data sets, held in memory: generated, scikit-learn's digits, files in a folder."""

from bayesbin.data.batches import Batches, RandomCropFlip
from bayesbin.data.built_in import digits, regression_1d, two_moons
from bayesbin.data.dataset import DataError, Dataset, Splits
from bayesbin.data.files import DATA_VARIABLE, data_folder
from bayesbin.data.images import cifar_folder, idx_folder, usps_folder
from bayesbin.data.named import load
from bayesbin.data.uci import uci_folder

__all__ = [
    "DATA_VARIABLE",
    "Batches",
    "DataError",
    "Dataset",
    "RandomCropFlip",
    "Splits",
    "cifar_folder",
    "data_folder",
    "digits",
    "idx_folder",
    "load",
    "regression_1d",
    "two_moons",
    "uci_folder",
    "usps_folder",
]
