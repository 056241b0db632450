"""Procedures around the models, one file each."""
