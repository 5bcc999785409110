"""Measure scores against the ground truth."""
