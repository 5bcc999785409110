"""PatchCore: distances to the nearest patch of a memory bank of normal patches."""
