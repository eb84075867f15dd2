"""Random banks and queries, and a search in plain Python."""

import math

import torch

from captum_fam.support import MemoryBank

N_CLASSES = 7


def random_bank(rows=503, features=17, seed=0, **options):
    generator = torch.Generator().manual_seed(seed)
    embeddings = torch.randn(rows, features, generator=generator)
    labels = torch.randint(N_CLASSES, (rows,), generator=generator)
    labels[:N_CLASSES] = torch.arange(N_CLASSES)
    return MemoryBank(embeddings, labels, **options)


def random_queries(count=11, features=17, seed=1):
    return torch.randn(count, features, generator=torch.Generator().manual_seed(seed))


def reference_neighbors(bank, query, k, measure="cosine", exclude=None):
    """Row ids and similarities, most similar first, by sorting all in plain Python and float64."""
    rows = bank.embeddings.double().tolist()
    found = []
    for b, z in enumerate(query.double().tolist()):
        scores = []
        for row, t in enumerate(rows):
            dot = math.fsum(x * y for x, y in zip(z, t, strict=True))
            if measure == "cosine":
                dot /= math.hypot(*z) * math.hypot(*t)
            elif measure == "euclidean":
                dot = -math.dist(z, t)
            if exclude is None or row not in exclude[b]:
                scores.append((dot, row))
        found.append(sorted(scores, reverse=True)[:k])
    return [[row for _, row in one] for one in found], torch.tensor([[s for s, _ in one] for one in found])
