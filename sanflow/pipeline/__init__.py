"""Run a benchmark: checks before the first job, one GPU for each job."""
