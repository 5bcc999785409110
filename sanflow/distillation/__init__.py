"""Distillation: a small network learns the reduced features of a larger one, from photographs and drawn images."""
