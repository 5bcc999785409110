"""Measure sanflow's speed; each command prints JSON and writes nothing."""
