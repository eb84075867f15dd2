"""Measurements, whose tables stand in ``docs``."""
