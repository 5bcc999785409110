"""PaDiM: a Gaussian for every position of a grid of frozen features."""
