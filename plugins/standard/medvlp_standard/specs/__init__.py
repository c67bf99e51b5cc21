"""Torch-free specs of the standard components, one file per role; each lists its classes in ``SPECS``."""
