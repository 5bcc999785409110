"""Read and check benchmark files and config.yaml, before any work."""
