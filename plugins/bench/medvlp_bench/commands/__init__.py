"""The commands of this bundle, one file each: torch is imported when they run."""
