"""Datasets of other kinds, one file a foreign format."""
