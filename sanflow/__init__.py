"""sanflow: a reproducible benchmark for visual anomaly detection, built around SANFlow (NeurIPS 2023)."""

from typing import Any

__all__ = ["load_detector"]


def __getattr__(name: str) -> Any:
    """Import what the package offers when it is asked for, so that `import sanflow` alone imports nothing."""
    if name == "load_detector":
        from sanflow.prediction.detector import load_detector

        return load_detector
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
