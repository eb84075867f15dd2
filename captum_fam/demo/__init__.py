"""The offline demo: planted scenes and a small network trained on them."""
