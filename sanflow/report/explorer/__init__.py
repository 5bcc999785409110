"""The explorer: one page that shows what was run, the headline table, and every test image with its anomaly maps.

It is a folder of static files that a browser opens from the disk: no server, no network, no framework. `page/` holds
the page itself; this package writes the data and pictures beside it.
"""

from sanflow.report.explorer.build import write_explorer

__all__ = ["write_explorer"]
