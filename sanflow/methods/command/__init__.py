"""Any tool as a method: a command is run on neutral copies of the images and writes anomaly maps."""
