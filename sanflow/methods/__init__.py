"""Anomaly detectors: one folder or file for each method."""
