"""Embedding whole data sets."""
