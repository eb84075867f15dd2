"""The rules of the way back, one file per kind of function: what is held, and which constants are noted."""
