"""Data sets by name; a split is two tensors in memory.

Nothing here imports torch before a split is loaded: the command line lists these names.
"""

import difflib

TORCHVISION_DATASETS = ("mnist", "fashion_mnist", "kmnist", "qmnist", "emnist_balanced", "emnist_letters")
