"""What people give: models, layers, queries, supports and pairs of images, read into tensors."""
