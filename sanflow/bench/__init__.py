"""Measurements of our own speed; each prints JSON and writes nothing."""
