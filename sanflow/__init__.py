"""sanflow: a reproducible benchmark for visual anomaly detection, built around SANFlow (NeurIPS 2023)."""
