"""Finds plug-ins and keeps a broken one from harming the others. Light."""
