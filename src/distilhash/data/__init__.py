"""Images, splits, views and preprocessing: everything that comes before a network."""

from distilhash.data.cifar10 import load_cifar10
from distilhash.data.decode import UnreadableImage, decode_image
from distilhash.data.folders import FolderSource, ListSource
from distilhash.data.loading import open_images
from distilhash.data.order import Batches, epoch_order
from distilhash.data.sources import ArraySource, ImageSource, Report, Subset, find_unreadable, readable
from distilhash.data.splits import Split, cifar10_split, holdout_split, list_split
from distilhash.data.transforms import Preprocess, Views, make_views

__all__ = [
    "ArraySource",
    "Batches",
    "FolderSource",
    "ImageSource",
    "ListSource",
    "Preprocess",
    "Report",
    "Split",
    "Subset",
    "UnreadableImage",
    "Views",
    "cifar10_split",
    "decode_image",
    "epoch_order",
    "find_unreadable",
    "holdout_split",
    "list_split",
    "load_cifar10",
    "make_views",
    "open_images",
    "readable",
]
