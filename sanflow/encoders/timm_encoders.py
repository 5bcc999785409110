"""Networks of timm, named `timm/<architecture>.<tag>`; the only module that imports timm.

The tag is required, because a name without one means other weights in other versions of timm: `wide_resnet50_2` is not
the checkpoint of the paper, `wide_resnet50_2.tv_in1k` is.
"""

import sys
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from sanflow.encoders.names import LISTED_ENCODERS
from sanflow.encoders.networks import Network, last_taps, seeded_weights, unknown_name
from sanflow.encoders.taps import tap_modules, without_in_place
from sanflow.encoders.weights import cannot_get, fetch_url, offline
from sanflow.errors import ConfigError

# How timm's transformers are asked to take images of any size; the first one that an architecture knows is used.
ANY_SIZE: tuple[dict[str, Any], ...] = ({"dynamic_img_size": True}, {"strict_img_size": False})


def create_timm(model: str, seed: int, random: bool) -> Network:
    """Create a network of timm, with random weights.

    Arguments:
        model: `<architecture>.<tag>`.
        seed: Of the random weights.
        random: Whether the random weights will stay.

    Raises:
        ConfigError: If the architecture or the tag is unknown, or the tag is missing.
    """
    import timm

    architecture, tag = _split(model)
    known = timm.models.get_arch_pretrained_cfgs(model)[model if tag else architecture]
    name = f"timm/{model}"
    # A zero-initialised last BatchNorm disables the residual branch of its block, so random weights have none.
    wide_awake = {"zero_init_last": False} if random and hasattr(timm.models.resnet, architecture) else {}
    with seeded_weights(seed):
        module, any_size = _create(model, known.fixed_input_size, wide_awake)
    without_in_place(module)
    return Network(
        module=module,
        name=name,
        architecture=architecture,
        tag=tag,
        version=f"timm {timm.__version__}",
        mean=known.mean,
        std=known.std,
        heads=_as_tuple(known.classifier),
        default_taps=partial(_default_taps, module, name),
        tap=partial(tap_modules, name=name),
        fetch=partial(_fetch, known, name),
        convert=getattr(sys.modules[type(module).__module__], "checkpoint_filter_fn", None),
        fixed_size=None if any_size else (known.input_size[1], known.input_size[2]),
        channels_last=getattr(module, "output_fmt", "NCHW") == "NHWC",
    )


def _split(model: str) -> tuple[str, str | None]:
    import timm

    architecture, _, tag = model.partition(".")
    if not timm.is_model(architecture):
        raise unknown_name("timm", architecture, timm.list_models())
    tags = [known.partition(".")[2] for known in timm.models.get_arch_pretrained_cfgs(architecture)]
    named = sorted(filter(None, tags))
    if tag in named or (not tag and not named):
        return architecture, tag or None
    choices = ", ".join(f"timm/{architecture}.{known}" for known in named) or f"timm/{architecture}, which has no tag"
    found = (
        f"tag {tag!r}"
        if tag
        else f"the name timm/{architecture} without a tag, which means other weights in other versions of timm"
    )
    raise ConfigError(f"Expected the weights' tag in the name of the encoder, but got {found}. Choose from: {choices}.")


def _create(model: str, fixed: bool, arguments: dict[str, Any]) -> tuple[nn.Module, bool]:
    """Create the network without its classifier; also return whether it takes images of any size."""
    import timm

    if fixed:
        for any_size in ANY_SIZE:
            try:
                return timm.create_model(model, num_classes=0, **arguments, **any_size), True
            except TypeError as error:
                if next(iter(any_size)) not in str(error):
                    raise
    return timm.create_model(model, num_classes=0, **arguments), not fixed


def _as_tuple(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    return (value,) if isinstance(value, str) else tuple(value)


def _default_taps(module: nn.Module, name: str, scales: int) -> list[str]:
    if listed := LISTED_ENCODERS.get(name):
        return last_taps(listed.taps, name, scales)
    modules = dict(module.named_modules())
    stages = [(stage["module"], stage["reduction"]) for stage in getattr(module, "feature_info", None) or []]
    taps = [tap for tap, _ in stages[-scales:]]
    strides = [stride for _, stride in stages[-scales:]]
    if len(taps) < scales or sorted(set(strides)) != strides or not all(tap in modules for tap in taps):
        blocks = [key for key in modules if key.count(".") == 1]
        raise ConfigError(
            f"Expected `taps` for {name}, because it has no {scales} scales of its own, but got none. "
            f"Name its layers, such as {', '.join(blocks[-3:]) or ', '.join(list(modules)[-3:])}."
        )
    return taps


def _fetch(known: Any, name: str) -> Path:
    if known.hf_hub_id:
        return _fetch_from_hub(known, name)
    if known.url and not known.custom_load:
        return fetch_url(known.url, name)
    raise cannot_get(name, "timm knows no file of them", "weights of this architecture elsewhere")


def _fetch_from_hub(known: Any, name: str) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    names = [known.hf_hub_filename] if known.hf_hub_filename else ["model.safetensors", "pytorch_model.bin"]
    source = f"{names[0]} with `hf download {known.hf_hub_id} {names[0]}`"
    reason = "its repository holds no file of weights"
    for filename in names:
        try:
            return Path(hf_hub_download(known.hf_hub_id, filename, local_files_only=offline()))
        except LocalEntryNotFoundError as error:
            reason = (
                "HF_HUB_OFFLINE is set and the cache does not hold them"
                if offline()
                else f"the download failed ({error})"
            )
        except EntryNotFoundError:
            continue
        except Exception as error:  # the hub's client raises errors of several libraries; each means no weights
            raise cannot_get(name, f"the download failed ({error})", source) from error
        if not offline():
            break
    raise cannot_get(name, reason, source)


def licence_of_tag(model: str) -> str | None:
    """Return the licence that timm notes for the weights of a tag; None where it notes none."""
    import timm

    known = timm.models.get_pretrained_cfg(model)
    licence: str | None = None if known is None else known.license
    return licence
