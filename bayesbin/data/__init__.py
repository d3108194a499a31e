"""Small data sets, held in memory: generated, scikit-learn's digits, files in a folder."""

from bayesbin.data.augmentation import RandomCropFlip
from bayesbin.data.batches import Batches
from bayesbin.data.colour import cifar_folder
from bayesbin.data.dataset import DataError, Dataset, Splits
from bayesbin.data.folders import DATA_VARIABLE, data_folder
from bayesbin.data.generated import regression_1d, two_moons
from bayesbin.data.handwritten import digits
from bayesbin.data.idx import idx_folder
from bayesbin.data.named import NAMES, load
from bayesbin.data.uci import uci_folder
from bayesbin.data.usps import usps_folder

__all__ = [
    "DATA_VARIABLE",
    "NAMES",
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
