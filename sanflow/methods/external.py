"""Method `external`: anomaly maps of the test images that another tool made."""

from typing import ClassVar, Literal

from sanflow.config.experiment import Experiment
from sanflow.config.names import ExpandedPath
from sanflow.methods.method import MapSource


class ExternalExperiment(Experiment):
    """Anomaly maps of another tool, read from a folder."""

    method: Literal["external"]
    maps: ExpandedPath
    """Folder of anomaly maps, with `{dataset}` and `{category}` in it."""

    not_fitted: ClassVar[frozenset[str]] = Experiment.not_fitted

    def files_for(self, dataset: str, category: str) -> dict[str, str]:
        """Return the folder of maps of a category."""
        # Not str.format: a path may hold other braces.
        return {"maps": self.maps.replace("{dataset}", dataset).replace("{category}", category)}


EXTERNAL = MapSource("external", ExternalExperiment)
