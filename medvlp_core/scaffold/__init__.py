"""What ``medvlp new`` writes: a complete, working plug-in package for one role, filled into templates."""
