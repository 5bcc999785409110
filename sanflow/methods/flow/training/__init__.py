"""Train the flows: from an index of normal images to a checkpoint, with saved states from which a kill resumes.

Role: from an index of normal images to a checkpoint. Imports nothing that reads labels of test images.
Layer: uses; depends on the model, losses, encoders, anomalies, data, checkpoints.
"""
