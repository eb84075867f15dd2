"""A data set of pictures, a model for them, and their bank."""

from collections import Counter

import torch
from torch import nn
from torch.utils.data import Dataset

from captum_fam.support import MemoryBank


class Pictures(Dataset):
    """53 pictures of 4 classes; some may be unreadable. Counts how often each is read."""

    class_names = ("ant", "bee", "cat", "dog")

    def __init__(self, broken=(), size=53, dies_at=None):
        self.images = torch.rand(53, 3, 4, 6, generator=torch.Generator().manual_seed(5))
        self.broken, self.size, self.dies_at = set(broken), size, dies_at
        self.read = Counter()

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        if index == self.dies_at:
            raise KeyboardInterrupt
        if index in self.broken:
            raise FileNotFoundError(2, "No such file", f"{index}.jpg")
        self.read[index] += 1
        return self.images[index], index % 4


def embedder(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(72, 5)).eval()


def build(dataset=None, model=None, path=None, **options):
    options = {"batch_size": 4, "save_every": 2, "progress": False, **options}
    return MemoryBank.from_dataset(model or embedder(), Pictures() if dataset is None else dataset, path, **options)
