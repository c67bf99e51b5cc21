"""Ops with several implementations: who declares them, and which implementation serves a call."""
