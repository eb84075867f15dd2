"""captum-fam and its peers on the same model, layer and mosaics: ``python -m benchmarks.peers``."""
