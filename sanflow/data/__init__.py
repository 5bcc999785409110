"""Download, index and read data sets.

Role: turn a data set's name into one checked table per category, and that table into arrays of images and masks.
Represents: the registry of data sets, their archives and layouts, the index, the image cache, the built-in textures.
Layer: parts (1).
Depends on: errors, files.
"""
