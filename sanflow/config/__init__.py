"""Read and check what a benchmark file and config.yaml say, before any work."""
