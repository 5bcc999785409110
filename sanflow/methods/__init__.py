"""Anomaly detectors, one folder or file each, and the seam through which the pipeline sees them.

`method.py` says what a method is, `registry.py` lists them.
"""
