"""Training, and what it needs to survive: saved states, signals, one GPU per job, a record of what it cost.

Role: from an index of normal images to a checkpoint. Imports nothing that sees a test image's label.
Layer: uses; depends on the model, losses, encoders, anomalies, data, checkpoints.
"""
