"""Make neighbours.npz: distances by anomalib's own PaDiM and PatchCore on fixed random features.

Run once, in an environment of its own: `pip install "anomalib>=2.7,<2.8"`, then `python neighbours_from_anomalib.py`.
The tests only read the arrays.
"""

from pathlib import Path

import numpy as np
import torch
from anomalib.models.image.padim.torch_model import PadimModel
from anomalib.models.image.patchcore.torch_model import PatchcoreModel

LAYERS = ["layer1", "layer2", "layer3"]
SHAPES = [(8, 8, 8), (12, 4, 4), (16, 2, 2)]
N_TRAIN, N_TEST, DIMENSIONS, BANK, NEIGHBOURS = 30, 3, 20, 200, 9


def main() -> None:
    """Write the arrays beside this file."""
    random = np.random.RandomState(0)
    taps = [random.randn(N_TRAIN + N_TEST, *shape).astype(np.float32) + 1 for shape in SHAPES]
    train, test = ([torch.from_numpy(tap[part]) for tap in taps] for part in (slice(N_TRAIN), slice(N_TRAIN, None)))
    chosen = np.sort(random.permutation(sum(shape[0] for shape in SHAPES))[:DIMENSIONS])

    padim = PadimModel("resnet18", layers=LAYERS, pre_trained=False, n_features=DIMENSIONS).eval()
    padim.idx = torch.from_numpy(chosen)
    padim.gaussian.fit(padim.generate_embedding(dict(zip(LAYERS, train, strict=True))))
    embedding = padim.generate_embedding(dict(zip(LAYERS, test, strict=True)))
    statistics = [padim.gaussian.mean, padim.gaussian.inv_covariance]
    padim_distances = padim.anomaly_map_generator.compute_distance(embedding, statistics)[:, 0]

    patchcore = PatchcoreModel(LAYERS[:2], "resnet18", pre_trained=False, num_neighbors=NEIGHBOURS).eval()

    def patches(features: list[torch.Tensor]) -> torch.Tensor:
        pooled = {name: patchcore.feature_pooler(tap) for name, tap in zip(LAYERS[:2], features, strict=False)}
        return patchcore.reshape_embedding(patchcore.generate_embedding(pooled))

    bank = random.permutation(N_TRAIN * 64)[:BANK]
    patchcore.memory_bank = patches(train)[torch.from_numpy(bank)]
    distances, locations = patchcore.nearest_neighbors(patches(test), n_neighbors=1)
    distances, locations = distances.reshape(N_TEST, -1), locations.reshape(N_TEST, -1)
    scores = patchcore.compute_anomaly_score(distances, locations, patches(test))
    np.savez_compressed(
        Path(__file__).with_name("neighbours.npz"),
        **{f"tap{i}": tap for i, tap in enumerate(taps)},
        chosen=chosen,
        padim_distances=padim_distances.numpy(),
        bank=bank,
        patchcore_distances=distances.reshape(N_TEST, 8, 8).numpy(),
        patchcore_scores=scores.numpy(),
    )


if __name__ == "__main__":
    main()
