"""Show what choosing an epoch by validation gains, and what choosing it on the test set would have gained.

The second is not a result. Differences have intervals over test images: the same images are drawn for both epochs.

Shapes: B bootstrap resamples.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from sanflow.evaluation.headline import headline_of
from sanflow.evaluation.metric_table import METRICS
from sanflow.evaluation.metrics.comparison import mean_and_std
from sanflow.report.runs import Run, in_order, read_curves
from sanflow.report.summary import Summary
from sanflow.report.tables.cells import MISSING, Section, Table, percent, points, words
from sanflow.report.tables.overview import headline_titles

MEASURE_PREFIX = "validation_"
FEWEST_EPOCHS = 3  # of a rank correlation
CONFIDENCE = 0.95
COLUMNS = ["dataset", "experiment", "metric", "last", "chosen", "oracle", "chosen_minus_last", "chosen_low"]
COLUMNS += ["chosen_high", "oracle_minus_last", "oracle_low", "oracle_high", "runs"]
CRITERION_COLUMNS = ["dataset", "category", "experiment", "seed", "measure", "metric", "correlation", "epochs"]
NOTHING = "No experiment keeps epochs: set `keep_every` to have this table."


@dataclass(frozen=True)
class Epochs:
    """The scored epochs of one run of an experiment.

    Arguments:
        reported: The run itself: its last epoch, or the chosen one.
        kept: The epochs that were kept beside it.
    """

    reported: Run
    kept: Sequence[Run]

    @property
    def chosen(self) -> Run | None:
        """The epoch that validation chose; None if the last one is reported."""
        return self.reported if self.reported.settings.get("choose_epoch") == "validation" else None

    @property
    def last(self) -> Run | None:
        """The last epoch of the schedule; None if it was not trained or not scored."""
        if self.chosen is None:
            return self.reported
        return next((run for run in self.kept if run.epoch == self.reported.settings.get("epochs")), None)

    def oracle(self, metric: str) -> Run | None:
        """Return the epoch with the best value of a metric on the test set; None if no epochs were kept."""
        known = [run for run in (*self.kept, self.reported) if not math.isnan(_value(run, metric))]
        return max(known, key=lambda run: _value(run, metric)) if self.kept and known else None

    def correlation(self, measure: str, metric: str) -> float:
        """Compute the rank correlation of a measure of validation with a metric of the test set over kept epochs.

        Spearman's, with mean ranks for equal values; NaN for fewer than three epochs, or where one is constant.
        """
        pairs = [(_measures(run).get(measure, math.nan), _value(run, metric)) for run in self.kept]
        ranks_2n = rankdata([pair for pair in pairs if not any(map(math.isnan, pair))], axis=0).T
        if ranks_2n.shape[-1] < FEWEST_EPOCHS or (np.ptp(ranks_2n, axis=1) == 0).any():
            return math.nan
        return float(np.corrcoef(ranks_2n)[0, 1])


def epochs_of(summary: Summary, dataset: str, experiment: str) -> dict[str, list[Epochs]]:
    """Return category -> the epochs of each seed's run."""
    kept: dict[tuple[str, int], list[Run]] = {}
    for run in summary.kept:
        if (run.dataset, run.experiment) == (dataset, experiment):
            kept.setdefault((run.category, run.seed), []).append(run)
    return {
        category: [
            Epochs(run, kept.get((category, run.seed), [])) for run in summary.runs_of(dataset, category, experiment)
        ]
        for category in summary.categories(dataset)
    }


def oracle_values(summary: Summary, dataset: str, experiment: str, metric: str) -> dict[str, float]:
    """Return category -> mean over seeds of the best epoch's value, among the kept epochs and the reported one.

    Empty if the experiment keeps no epochs. Each metric has its own best epoch, as in the releases that report it.
    """
    values = {}
    for category, runs in epochs_of(summary, dataset, experiment).items():
        best = [_value(run, metric) for epochs in runs if (run := epochs.oracle(metric)) is not None]
        if best:
            values[category] = mean_and_std(best)[0]
    return values


def epoch_table(summary: Summary) -> Table:
    """Show last, chosen and oracle epoch and their differences, per data set, experiment and headline metric."""
    sections, records = [], []
    for dataset in summary.datasets:
        rows = []
        for experiment in summary.experiments(dataset):
            found = {name: runs for name, runs in epochs_of(summary, dataset, experiment).items() if runs}
            runs = [epochs for own in found.values() for epochs in own]
            if not any(epochs.kept or epochs.chosen for epochs in runs):
                continue
            for metric in headline_of(dataset):
                by_kind = {
                    category: {
                        "last": [epochs.last for epochs in own],
                        "chosen": [epochs.chosen for epochs in own],
                        "oracle": [epochs.oracle(metric) for epochs in own],
                    }
                    for category, own in found.items()
                }
                means = {kind: _mean(by_kind, kind, metric) for kind in ("last", "chosen", "oracle")}
                chosen, oracle = (_difference(by_kind, kind, metric) for kind in ("chosen", "oracle"))
                rows.append(
                    [
                        words(summary.labels[experiment]),
                        words(METRICS[metric].title),
                        *(percent(None if math.isnan(mean) else mean) for mean in means.values()),
                        *(words(text) for difference in (chosen, oracle) for text in _texts(difference)),
                        words(_chosen_epoch(runs)),
                        words(_share_of_training(runs)),
                        words(len(runs)),
                    ]
                )
                records.append(
                    {"dataset": dataset, "experiment": experiment, "metric": metric}
                    | means
                    | dict(zip(("chosen_minus_last", "chosen_low", "chosen_high"), chosen, strict=True))
                    | dict(zip(("oracle_minus_last", "oracle_low", "oracle_high"), oracle, strict=True))
                    | {"runs": len(runs)}
                )
        header = ["Experiment", "Metric", "Last", "Chosen", "Oracle", "Chosen − last", "95 % interval"]
        header += ["Oracle − last", "95 % interval", "Chosen epoch", "Its cost", "Runs"]
        if rows:
            sections.append(Section(dataset, header, rows, text_columns=2))
    return Table(
        name="epoch",
        title="Last, chosen and oracle epoch",
        caption="In percent, mean over categories; differences in percentage points, with bootstrap intervals over "
        "test images. Chosen: by validation, without the test set; its cost is a share of the training time. Oracle: "
        "chosen on the test set, for each metric and run separately, among the kept epochs and the reported one; an "
        "upper bound, not a result.",
        sections=sections,
        notes=list(summary.notes) if sections else [NOTHING],
        data=pd.DataFrame(records, columns=COLUMNS),
    )


def criterion_table(summary: Summary) -> Table:
    """Show how well each measure of validation ranks the kept epochs as the test set does."""
    sections, records = [], []
    for dataset in summary.datasets:
        rows = []
        for experiment in summary.experiments(dataset):
            runs = [epochs for own in epochs_of(summary, dataset, experiment).values() for epochs in own]
            for measure in in_order(name for epochs in runs for run in epochs.kept for name in _measures(run)):
                cells = []
                for metric in headline_of(dataset):
                    values = [epochs.correlation(measure, metric) for epochs in runs]
                    known = [value for value in values if not math.isnan(value)]
                    cells += [words(_signed(float(np.mean(known))) if known else None), words(_range(known))]
                    records += [
                        {
                            "dataset": dataset,
                            "category": epochs.reported.category,
                            "experiment": experiment,
                            "seed": epochs.reported.seed,
                            "measure": measure,
                            "metric": metric,
                            "correlation": value,
                            "epochs": len(epochs.kept),
                        }
                        for epochs, value in zip(runs, values, strict=True)
                    ]
                rows.append([words(summary.labels[experiment]), words(measure), *cells, words(len(runs))])
        titles = [part for title in headline_titles(dataset) for part in (title, "range")]
        if rows:
            sections.append(Section(dataset, ["Experiment", "Measure", *titles, "Runs"], rows, text_columns=2))
    nothing = ["No experiment has `choose_epoch: validation`, which measures the kept epochs on held-out parts."]
    return Table(
        name="criterion",
        title="Rank correlation of validation with the test set",
        caption="Spearman's, over the kept epochs of a run; mean and range over the runs (category x seed). "
        "The epoch is chosen by region_overlap.",
        sections=sections,
        notes=list(summary.notes) if sections else nothing,
        data=pd.DataFrame(records, columns=CRITERION_COLUMNS),
    )


Runs = Mapping[str, Mapping[str, Sequence[Run | None]]]


def _value(run: Run, metric: str) -> float:
    return float(run.metrics.get(metric, math.nan))


def _measures(run: Run) -> dict[str, float]:
    details = run.metrics.get("provenance", {}).get("steps", {}).get("fit", {}).get("details", {})
    return {
        name.removeprefix(MEASURE_PREFIX): value for name, value in details.items() if name.startswith(MEASURE_PREFIX)
    }


def _mean(by_kind: Runs, kind: str, metric: str) -> float:
    """Compute the mean over categories of the mean over seeds; NaN where any run lacks this epoch."""
    runs = [own[kind] for own in by_kind.values()]
    return mean_and_std(
        mean_and_std(math.nan if run is None else _value(run, metric) for run in one)[0] for one in runs
    )[0]


def _difference(by_kind: Runs, kind: str, metric: str) -> tuple[float, float, float]:
    """Compute the mean difference of an epoch to the last one, and its interval over test images.

    Runs of one category share their test images, so its seeds are averaged within each resample. Images of different
    categories are drawn apart, so each category's resamples are put into an order of their own.
    """
    value = _mean(by_kind, kind, metric) - _mean(by_kind, "last", metric)
    means_B = []
    for number, own in enumerate(by_kind.values()):
        pairs = [
            (_resampled(run, metric), _resampled(last, metric))
            for run, last in zip(own[kind], own["last"], strict=True)
        ]
        if any(first is None or second is None for first, second in pairs):
            return value, math.nan, math.nan
        mean_B = np.mean(
            [first - second for first, second in pairs if first is not None and second is not None], axis=0
        )
        means_B.append(np.random.RandomState(number).permutation(mean_B))
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(np.mean(means_B, axis=0), [tail, 100 - tail])
    return value, float(low), float(high)


def _resampled(run: Run | None, metric: str) -> np.ndarray | None:
    """Return a metric in each bootstrap resample, (B,); None where it is not known."""
    if run is None or not (run.folder / "curves.npz").exists():
        return None
    values_B = read_curves(run).get(f"resampled_{metric}")
    return None if values_B is None or not values_B.size else values_B.astype(np.float64)


def _texts(difference: tuple[float, float, float]) -> tuple[str, str]:
    value, low, high = difference
    return points(value), MISSING if math.isnan(low) else f"{points(low)} … {points(high)}"


def _chosen_epoch(runs: Sequence[Epochs]) -> str | None:
    """Return the mean of the chosen epochs beside the length of the schedule."""
    chosen = [epochs.chosen.metrics.get("provenance", {}).get("epoch") for epochs in runs if epochs.chosen]
    known = [epoch for epoch in chosen if epoch is not None]
    return f"{np.mean(known):.1f} of {runs[0].reported.settings.get('epochs')}" if known else None


def _share_of_training(runs: Sequence[Epochs]) -> str | None:
    """Return the share of the training time that validation took, over all runs."""
    costs = [epochs.chosen.metrics.get("cost", {}) for epochs in runs if epochs.chosen]
    known = [cost for cost in costs if cost.get("validation_seconds") is not None]
    validation, training = (sum(cost[f"{name}_seconds"] for cost in known) for name in ("validation", "training"))
    return f"{100 * validation / training:.0f} %" if training else None


def _range(values: Sequence[float]) -> str | None:
    return f"{_signed(min(values))} … {_signed(max(values))}" if len(values) > 1 else None


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")
