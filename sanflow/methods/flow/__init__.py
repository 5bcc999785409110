"""Normalizing flows on encoder features: SANFlow, CFLOW-AD and the matched baseline."""
