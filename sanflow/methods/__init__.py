"""Anomaly detectors, one folder or file each, and the interface by which the pipeline uses them.

`method.py` defines a method, `registry.py` lists them.
"""
