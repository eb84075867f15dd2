"""The folder of an explanation, written and read."""
