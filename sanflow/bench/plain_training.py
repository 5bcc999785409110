"""Train as docs/method.md says, literally: FrEIA's `AllInOneBlock`, default Adam, contiguous fp32, a step per scale.

Plain on purpose: tests compare the fast path with its numbers, `sanflow bench` with its time. Shares no code with it.

Shapes: B images, C channels, N locations, P channels of the position code.
"""

import math

import FrEIA.framework as Ff
import FrEIA.modules as Fm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

K = -0.5 * math.log(2 * math.pi)
ALPHA_0, BETA_0 = 59.5, 6.05


def subnet(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, 2 * inputs), nn.ReLU(), nn.Linear(2 * inputs, outputs))


def freia_flow(channels: int, position_channels: int, blocks: int) -> nn.Module:
    flow = Ff.SequenceINN(channels)
    for _ in range(blocks):
        flow.append(
            Fm.AllInOneBlock,
            cond=0,
            cond_shape=(position_channels,),
            subnet_constructor=subnet,
            affine_clamping=1.9,
            global_affine_type="SOFTPLUS",
            permute_soft=False,
        )
    return flow


class PlainStatisticsNetwork(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        layers: list[nn.Module] = []
        for _ in range(3):
            layers += [nn.Conv2d(64, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
        self.middle = nn.Sequential(*layers)
        self.last = nn.Conv2d(64, 2, 3, padding=1, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        first = F.relu(self.first(images))
        return self.last(self.middle(first) + first)


def position_code(channels: int, height: int, width: int) -> Tensor:
    code = torch.zeros(channels, height, width)
    half = channels // 2
    for k in range(0, half, 2):
        frequency = math.exp(-k * math.log(1e4) / half)
        column, row = torch.arange(width) * frequency, torch.arange(height) * frequency
        code[k], code[k + 1] = column.sin()[None, :], column.cos()[None, :]
        code[half + k], code[half + k + 1] = row.sin()[:, None], row.cos()[:, None]
    return code


def scale_loss(flow: nn.Module, network: nn.Module, features: Tensor, images: Tensor, mask: Tensor, P: int) -> Tensor:
    batch, channels, height, width = features.shape
    code = position_code(P, height, width).to(features).repeat(batch, 1, 1, 1)
    x = features.permute(0, 2, 3, 1).reshape(-1, channels)
    z, log_det = flow(x, [code.permute(0, 2, 3, 1).reshape(-1, P)])

    parameters = F.interpolate(network(images), size=(height, width), mode="nearest")
    log_alpha, log_beta = parameters[:, 0].reshape(-1), parameters[:, 1].reshape(-1)
    log_alpha = log_alpha.clamp(math.log(1e-8), math.log(1e4))
    alpha = log_alpha.exp()
    abnormal = F.interpolate(mask, size=(height, width), mode="nearest").reshape(-1) > 0
    held_log_alpha = torch.where(abnormal, log_alpha.detach(), log_alpha)
    held_log_beta = torch.where(abnormal, log_beta.detach(), log_beta)
    ratio = (held_log_alpha - held_log_beta).exp()
    variance = (log_beta.exp() / (alpha + 1)).clamp(0, 5).detach()

    squared = (z**2).sum(1)
    log_p_n = channels * K - channels * (held_log_beta - torch.digamma(alpha)) - 0.5 * squared * ratio
    log_p_a = channels * K - 0.5 * ((z - 1) ** 2).sum(1) / variance - 0.5 * channels * variance.log()
    divergence = (
        (alpha - ALPHA_0) * torch.digamma(alpha)
        + math.lgamma(ALPHA_0)
        - torch.lgamma(alpha)
        + ALPHA_0 * (held_log_beta - math.log(BETA_0))
        + BETA_0 * ratio
        - alpha
    )
    two_class = F.cross_entropy(torch.softmax(torch.stack([log_p_n, log_p_a], 1), 1), abnormal.long())
    objective = torch.where(abnormal, log_p_a, log_p_n) + log_det - divergence - 0.2 * two_class
    return -F.logsigmoid(objective / channels).mean()


class PlainTraining:
    """Flows, statistics network and optimizer of the plain training.

    Arguments:
        channels: Of each scale.
        position_channels: P.
        blocks: Of each flow.
        learning_rate: Of Adam, constant here.
    """

    def __init__(
        self, channels: list[int], position_channels: int = 512, blocks: int = 8, learning_rate: float = 5e-4
    ) -> None:
        self.position_channels = position_channels
        self.flows = nn.ModuleList(freia_flow(n, position_channels, blocks) for n in channels)
        self.network = PlainStatisticsNetwork()
        self.optimizer = torch.optim.Adam(
            [*self.flows.parameters(), *self.network.parameters()], lr=learning_rate, foreach=False
        )

    def to(self, dtype: torch.dtype) -> "PlainTraining":
        self.flows.to(dtype)
        self.network.to(dtype)
        return self

    def loss(self, scale: int, features: Tensor, images: Tensor, mask: Tensor) -> Tensor:
        return scale_loss(self.flows[scale], self.network, features, images, mask, self.position_channels)

    def step(self, features: list[Tensor], images: Tensor, mask: Tensor) -> list[float]:
        """Train one batch: for each scale in turn loss, zero_grad, backward, Adam; return the losses."""
        losses = []
        for scale, maps in enumerate(features):
            loss = self.loss(scale, maps, images, mask)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            losses.append(loss.item())
        return losses

    def joint_step(self, features: list[Tensor], images: Tensor, mask: Tensor) -> float:
        """Train one batch with one step for the sum of the scales (the statistics network runs once per scale)."""
        total = sum((self.loss(scale, maps, images, mask) for scale, maps in enumerate(features)), torch.tensor(0.0))
        self.optimizer.zero_grad()
        total.backward()
        self.optimizer.step()
        return total.item()
