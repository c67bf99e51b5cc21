"""Specs of the gallery's components, one module for each system. Light."""
