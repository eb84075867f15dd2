"""Embedding whole data sets, batch by batch."""

from captum_fam.embedding.batch_loader import Batch, BatchLoader, OnError
from captum_fam.embedding.embedded_dataset import EmbeddedDataset, RowBlock
from captum_fam.embedding.embedder import DatasetEmbedder, reason_not_finite

__all__ = ["Batch", "BatchLoader", "DatasetEmbedder", "EmbeddedDataset", "OnError", "RowBlock", "reason_not_finite"]
