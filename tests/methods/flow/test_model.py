"""The model: what its parts are together, and that paper and baseline differ in one of them."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sanflow.methods.flow.coupling_flow import Rotation
from sanflow.methods.flow.distributions import UnitVariance
from sanflow.methods.flow.model import AnomalyFlow, abnormal_locations
from sanflow.methods.flow.settings import SanflowExperiment
from sanflow.methods.flow.statistics_network import FixedBase, StatisticsNetwork

CHANNELS = [8, 12]
SIZES = [(6, 4), (3, 2)]


def small(**changes) -> AnomalyFlow:
    return AnomalyFlow(CHANNELS, **({"position_channels": 16, "coupling_blocks": 2, "seed": 1} | changes))


def batch(n_images: int = 2) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(n_images, 3, 24, 16, generator=generator)
    mask = torch.zeros(n_images, 1, 24, 16)
    mask[0, 0, 4:12, 4:8] = 0.3
    features = [
        torch.randn(n_images, channels, *size, generator=generator)
        for channels, size in zip(CHANNELS, SIZES, strict=True)
    ]
    return images, mask, features


@pytest.mark.parametrize("base", ["predicted", "fixed"])
@pytest.mark.parametrize("synthetic", [True, False])
def test_training_reduces_the_objective_of_every_cell_of_the_ablation(base, synthetic):
    model = small(base=base)
    images, mask, features = batch()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    losses = []
    for _ in range(15):
        parameters = model.base_for(images, *features)
        loss = sum(
            model.objective(scale, features[scale], parameters, mask if synthetic else None)[0] for scale in range(2)
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.05
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("image", "grids", "computed"),
    [
        ((32, 48), [(8, 12), (4, 6)], (8, 12)),  # strides 4 and 8: every 4th pixel
        ((32, 48), [(8, 12), (16, 6)], (16, 12)),  # rows every 4th and 2nd, columns every 4th and 8th
        ((24, 24), [(4, 4), (6, 6)], (12, 12)),  # every 6th and 4th: every 2nd
        ((32, 32), [(4, 4), (5, 5)], (32, 32)),  # a grid that does not divide the image reads uneven places
    ],
)
def test_base_is_computed_only_where_the_grids_read_it(image, grids, computed):
    model = small().double()
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, *image, generator=generator, dtype=torch.float64)
    features = [torch.zeros(2, channels, *grid) for channels, grid in zip(CHANNELS, grids, strict=True)]
    found, everywhere = model.base_for(images, *features), model.base(images)
    assert found.log_alpha.shape == (2, *computed)
    for grid in grids:
        for name in ("log_alpha", "log_beta"):
            ours, expected = getattr(found.at_grid(*grid), name), getattr(everywhere.at_grid(*grid), name)
            torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)


def test_baseline_differs_in_the_base_alone():
    predicted, fixed = small(), small(base="fixed")
    flows = {key: value for key, value in predicted.state_dict().items() if key.startswith("flows.")}
    assert set(fixed.state_dict()) == set(flows)
    assert all(torch.equal(fixed.state_dict()[key], value) for key, value in flows.items())
    assert isinstance(predicted.base, StatisticsNetwork)
    assert isinstance(fixed.base, FixedBase)


def test_matched_baselines_loss_is_written_out():
    model = small(base="fixed")
    images, _, features = batch()
    loss, _ = model.objective(0, features[0], model.base(images), None)
    z, log_det = model.latents(0, features[0])
    log_prob = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(1) + log_det
    torch.testing.assert_close(loss, -torch.nn.functional.logsigmoid(log_prob / 8).mean())


def test_experiment_says_all():
    experiment = SanflowExperiment(
        method="sanflow",
        base="fixed",
        permutation="rotation",
        encoder="timm/resnet18.tv_in1k",
        position_channels=16,
        coupling_blocks=3,
        abnormal_mean=2.0,
    )
    model = AnomalyFlow.from_experiment(CHANNELS, experiment, seed=4)
    assert len(model.flows[0].blocks) == 3
    assert model.position_channels == model.flows[1].condition_channels == 16
    assert isinstance(model.flows[0].blocks[0].mixing, Rotation)
    assert isinstance(model.base, FixedBase)
    assert model.abnormal_mean == 2.0
    assert model.channels == CHANNELS


def test_construction_depends_on_the_seed_alone():
    before = torch.get_rng_state()
    first, second, other = (small(seed=seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not torch.equal(first["base.first.weight"], other["base.first.weight"])
    output_weights = [first[f"flows.{scale}.blocks.module_list.0.subnet.output_bias"] for scale in range(2)]
    assert not torch.equal(output_weights[0], output_weights[1][:8])
    # Scales are drawn independently: one more does not change the others.
    alone = AnomalyFlow(CHANNELS[:1], position_channels=16, coupling_blocks=2, seed=1).state_dict()
    assert all(torch.equal(first[key], value) for key, value in alone.items())


def test_shuffled_chunks_add_up_to_the_whole():
    model = small(base="fixed")
    images, _, features = batch()
    whole, _ = model.objective(0, features[0], model.base(images), None)
    features_NC, condition_MP = model.locations(features[0])
    condition_NP = condition_MP.repeat(len(images), 1)
    order = torch.randperm(len(features_NC), generator=torch.Generator().manual_seed(0))
    parts = [
        model.objective_at(0, features_NC[part], condition_NP[part], UnitVariance())[0] for part in order.split(16)
    ]
    assert len(parts) == 3
    torch.testing.assert_close(sum(parts) / 3, whole)


def test_locations_are_images_then_rows_then_columns():
    model = small()
    _, _, features = batch()
    features_NC, condition_MP = model.locations(features[0])
    assert torch.equal(features_NC[24 + 4 * 2 + 3], features[0][1, :, 2, 3])
    assert condition_MP.shape == (24, 16)


def test_a_location_is_abnormal_where_its_nearest_pixel_is():
    mask = torch.zeros(1, 1, 4, 4)
    mask[0, 0, 2, 0], mask[0, 0, 1, 3] = 0.01, 1.0
    assert abnormal_locations(mask, 2, 2).tolist() == [False, False, True, False]


@pytest.mark.parametrize("base", ["predicted", "fixed"])
def test_score_is_the_log_density_per_channel(base):
    model = small(base=base).eval()
    images, _, features = batch()
    scores = model.score(features, images, latents_of=1)
    grids = scores.grids
    assert [tuple(grid.shape) for grid in grids] == [(2, 6, 4), (2, 3, 2)]
    z, log_det = model.latents(1, features[1])
    torch.testing.assert_close(scores.latents_NC, z)
    variance = scores.variance_Bhw
    sigma = torch.ones(12) if variance is None else variance[:, ::2, ::2].flatten().sqrt()
    expected = torch.distributions.Normal(0.0, sigma[:, None]).log_prob(z).sum(1) + log_det
    torch.testing.assert_close(grids[1].flatten(), expected.detach() / 12)


def test_score_of_an_image_does_not_depend_on_its_batch():
    model = small().eval()
    images, _, features = batch(3)
    together = model.score(features, images).grids
    alone = model.score([scale[1:2] for scale in features], images[1:2]).grids
    for many, one in zip(together, alone, strict=True):
        torch.testing.assert_close(many[1:2], one, rtol=1e-5, atol=1e-5)


def test_scores_of_a_training_model_are_refused():
    images, _, features = batch()
    with pytest.raises(ValueError, match=r"eval mode.*call model.eval\(\)"):
        small().train().score(features, images)


def test_variance_is_none_for_a_fixed_base():
    images, _, features = batch()
    assert small(base="fixed").eval().score(features, images).variance_Bhw is None
    variance = small().eval().score(features, images).variance_Bhw
    assert variance.shape == (2, 6, 4), "one for each pixel that the finest grid reads"
    assert 0 < variance.min() <= variance.max() <= 5


def test_half_precision_objective_is_close():
    model = small()
    images, mask, features = batch()
    full, _ = model.objective(0, features[0], model.base(images), mask)
    with torch.autocast("cpu", torch.bfloat16):
        half, terms = model.objective(0, features[0].bfloat16(), model.base(images), mask)
    assert half.dtype == torch.float32
    assert all(term.dtype == torch.float32 for term in terms.values())
    torch.testing.assert_close(half, full, rtol=0.02, atol=0)


class NothingWaits(TorchDispatchMode):
    """Fails at an operation that makes the CPU wait for an accelerator."""

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        assert not any(name in str(function) for name in ("_local_scalar_dense", "nonzero", "masked_select", "unique"))
        return function(*arguments, **(keywords or {}))


def test_objective_never_waits_for_the_device():
    model = small()
    images, mask, features = batch()
    with NothingWaits():
        loss, _ = model.objective(0, features[0], model.base(images), mask)
        loss.backward()
    with pytest.raises(AssertionError), NothingWaits():
        loss.item()


def test_unknown_base_is_refused():
    with pytest.raises(ValueError, match="'predicted' or 'fixed', but got 'learned'"):
        small(base="learned")
