"""Use a fitted detector on new images: scores, p-values without labels, regions, export."""
