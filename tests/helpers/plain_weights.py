"""The plain training's weights for our model."""

from torch import Tensor

from sanflow.bench.plain_training import PlainTraining


def weights_of_plain(plain: PlainTraining) -> dict[str, Tensor]:
    """The plain training's weights under the names of `AnomalyFlow`."""
    state = {}
    for scale, flow in enumerate(plain.flows):
        for block, module in enumerate(flow.module_list):
            name = f"flows.{scale}.blocks.module_list.{block}."
            first, second = module.subnet[0], module.subnet[2]
            n_features = first.weight.shape[1] - plain.position_channels
            state |= {
                name + "global_scale": module.global_scale.flatten(),
                name + "global_offset": module.global_offset.flatten(),
                name + "mixing.order": module.w_perm.flatten(1).argmax(dim=1),
                name + "subnet.features_weight": first.weight[:, :n_features],
                name + "subnet.condition_weight": first.weight[:, n_features:],
                name + "subnet.hidden_bias": first.bias,
                name + "subnet.output_weight": second.weight,
                name + "subnet.output_bias": second.bias,
            }
    network = plain.network
    state |= {"base.first.weight": network.first.weight, "base.last.weight": network.last.weight}
    for layer in range(3):
        state[f"base.hidden.{layer}.weight"] = network.middle[3 * layer].weight
        for key, value in network.middle[3 * layer + 1].state_dict().items():
            state[f"base.norms.{layer}.{key}"] = value
    return {name: value.detach().clone() for name, value in state.items()}
