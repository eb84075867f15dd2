"""Both sides of a match: the maps of a query and of its supports, and the positions that match."""
