"""A small benchmark's results, made up: a real data set on disk, scores that a model might give, and all that follows.

So tables and figures are tested, and looked at, without any training.
"""

import json
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from scipy.ndimage import gaussian_filter

from sanflow.anomaly_maps.scores_file import Extras, Scores
from sanflow.data.images import load_masks
from sanflow.data.index import Index, build_index, write_index
from sanflow.evaluation.evaluate import evaluate_files
from sanflow.evaluation.metric_table import HEADLINE
from sanflow.files import write_json


def draw_data_set(root: Path, categories=("nut", "cap"), n_train=4, n_good=5, n_defects=3, size=(64, 64)) -> Path:
    """A data set in MVTec AD's layout: grey texture, dark strokes and dots where defective."""
    rng = np.random.default_rng(7)
    height, width = size
    for category in categories:
        for part, count in {
            "train/good": n_train,
            "test/good": n_good,
            "test/dot": n_defects,
            "test/line": n_defects,
        }.items():
            for number in range(count):
                noise = gaussian_filter(rng.normal(size=(height, width)), 1.5)
                image = Image.fromarray((150 + 120 * noise).clip(0, 255).astype(np.uint8)).convert("RGB")
                mask = Image.new("L", (width, height))
                x, y = rng.uniform(0.25, 0.75, 2) * (width, height)
                for canvas, colour in ((image, (60, 30, 20)), (mask, 255)):
                    pen = ImageDraw.Draw(canvas)
                    if part == "test/dot":
                        pen.ellipse([x - 6, y - 6, x + 6, y + 6], fill=colour)
                    if part == "test/line":
                        pen.line([x - 14, y - 8, x + 14, y + 8], fill=colour, width=4)
                file = root / category / part / f"{number:03d}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                image.save(file)
                if part not in ("train/good", "test/good"):
                    truth = root / category / part.replace("test", "ground_truth") / f"{number:03d}_mask.png"
                    truth.parent.mkdir(parents=True, exist_ok=True)
                    mask.save(truth)
    return root


def imagine_scores(index: Index, size=(64, 64), quality=3.0, *, draw=0, **provenance) -> Scores:
    """Scores that find the defects, the better the higher `quality`: grids of log p / C at strides 4 and 8."""
    rng = np.random.default_rng(draw)
    masks = np.asarray(load_masks(index, size), float)
    grids = {}
    for number, stride in enumerate((4, 8)):
        h, w = size[0] // stride, size[1] // stride
        cells = masks.reshape(len(masks), h, stride, w, stride).mean((2, 4))
        blurred = gaussian_filter(cells, (0, 0.6, 0.6))
        noise = gaussian_filter(rng.normal(size=cells.shape), (0, 0.7, 0.7))
        grids[f"scale{number}"] = -0.3 - 0.25 * quality * blurred + 0.2 * noise
    table = index.test
    return Scores(
        kind="log_prob",
        grids=grids,
        constants={name: float(np.quantile(grid, 0.95)) for name, grid in grids.items()},
        paths=list(table.image),
        labels=table.label.to_numpy() == 1,
        defect_types=list(table.defect_type),
        input_size=size,
        provenance={"index_digest": index.digest, "device": "cpu", **provenance},
        cost={"images_per_second": 12.5},
    )


def imagine_extras(scores: Scores, seed=0) -> Extras:
    """Variance maps and latents as they might be: normal around 0, anomalous apart."""
    rng = np.random.default_rng(seed)
    n_images, h, w = next(iter(scores.grids.values())).shape
    labels = rng.random(240) < 0.3
    return Extras(
        paths=scores.paths,
        variance=0.1 + 0.05 * gaussian_filter(rng.normal(size=(n_images, 2 * h, 2 * w)), (0, 3, 3)),
        latents=rng.normal(size=(240, 16)) + 2.5 * labels[:, None],
        latent_labels=labels,
        latent_scale="scale1",
    )


def imagine_history(epochs=4, seed=0) -> dict:
    """Content of train.json."""
    rng = np.random.default_rng(seed)
    history = [
        {
            "epoch": epoch,
            "loss": float(0.9 * np.exp(-epoch / 2) + 0.3 + 0.02 * rng.normal()),
            "learning_rate": float(5e-4 * (1 + np.cos(np.pi * epoch / epochs)) / 2),
            "scale0": {"loss": float(0.9 * np.exp(-epoch / 2) + 0.35)},
            "scale1": {"loss": float(0.9 * np.exp(-epoch / 3) + 0.25)},
        }
        for epoch in range(1, epochs + 1)
    ]
    return {
        "history": history,
        "seconds": {"total": 90.0},
        "images_per_second": 8.0,
        "peak_memory_bytes": 1.5e9,
        "parameters": 2_500_000,
        "device": "cpu",
    }


def imagine_run(folder: Path, index_path: Path, index: Index, experiment: str, settings: dict, **options) -> None:
    """All files of one run, evaluated for real."""
    size, seed = options.get("size", (64, 64)), options.get("seed", 0)
    fixed = settings.get("base") == "fixed"
    scores = imagine_scores(
        index,
        size,
        options.get("quality", 3.0),
        draw=seed,
        experiment=settings,
        experiment_name=experiment,
        dataset=index.dataset,
        category=index.category,
        seed=seed,
        encoder={"name": settings.get("encoder"), "padding": "zeros"},
    )
    folder.mkdir(parents=True, exist_ok=True)
    scores.save(folder / "scores.npz")
    extras = imagine_extras(scores, seed)
    Extras(extras.paths, None if fixed else extras.variance, extras.latents, extras.latent_labels, "scale1").save(
        folder / "extras.npz"
    )
    (folder / "checkpoint.pt").write_bytes(bytes(1000))
    write_json(folder / "train.json", imagine_history(seed=seed))
    evaluation = evaluate_files(
        folder / "scores.npz", index_path, history_path=folder / "train.json", resamples=options.get("resamples", 20)
    )
    evaluation.write(folder / "metrics.json")


EXPERIMENTS = {
    "sanflow": {
        "method": "sanflow",
        "label": "SANFlow",
        "encoder": "torchvision/resnet18",
        "weights": "random",
        "base": "predicted",
        "synthetic_anomalies": True,
        "abnormal_mean": 1.0,
        "epochs": 4,
    },
    "cflow-matched": {
        "method": "cflow-matched",
        "label": None,
        "encoder": "torchvision/resnet18",
        "weights": "random",
        "base": "fixed",
        "synthetic_anomalies": False,
        "abnormal_mean": 1.0,
        "epochs": 4,
    },
}


def imagine_benchmark(
    top: Path, dataset="my_parts", categories=("nut", "cap"), seeds=(0,), root: Path | None = None, **options
) -> Path:
    """A results folder with two experiments.

    Returns:
        `top`/results/imagined.
    """
    size = options.get("size", (64, 64))
    root = root or draw_data_set(top / "data" / dataset, categories, size=size)
    results = top / "results" / "imagined"
    for category in categories:
        index = build_index(dataset, category, root, kind="folder")
        index_path = results / dataset / category / "index.csv"
        write_index(index, index_path)
        for number, (experiment, settings) in enumerate(EXPERIMENTS.items()):
            for seed in seeds:
                run = results / dataset / category / experiment / f"seed{seed}"
                quality = options.get("quality", 4.0) - 1.2 * number
                imagine_run(
                    run, index_path, index, experiment, settings, **{**options, "quality": quality, "seed": seed}
                )
    return results


def write_metrics(results: Path, run: str, settings: dict | None = None, **values) -> Path:
    """Only a metrics.json, for tests of tables; headline metrics that are not given are 0.5."""
    metrics = dict.fromkeys(HEADLINE, 0.5) | values
    metrics["provenance"] = {"experiment": settings or {}, "encoder": {}} | values.get("provenance", {})
    file = results / run / "metrics.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(metrics))
    return file
