"""Turn scores into anomaly maps: the scores file, fusion of scales, maps of other tools. No torch."""
