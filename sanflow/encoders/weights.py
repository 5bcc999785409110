"""Weight files: find, read, fit strictly, digest."""

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor, nn

from sanflow.errors import WeightsError

SUFFIXES = (".pth", ".pt", ".bin", ".safetensors")
WRAPPERS = ("state_dict", "model")
"""Keys under which training programs keep the weights beside other things."""
PREFIXES = ("module.", "_orig_mod.")
"""Prefixes that DataParallel and torch.compile add to the name of every tensor of the network that they wrap."""
COUNTER = "num_batches_tracked"
"""BatchNorm's step counter: absent from old files and without meaning in eval mode."""


def offline() -> bool:
    """Return whether HF_HUB_OFFLINE forbids the use of the network."""
    return os.environ.get("HF_HUB_OFFLINE", "").strip().upper() in {"1", "ON", "YES", "TRUE"}


def cannot_get(name: str, reason: str, source: str) -> WeightsError:
    """Make the error for pretrained weights that cannot be fetched, with a workaround."""
    return WeightsError(
        f"Expected to get the pretrained weights of {name}, but {reason}. Where there is a network, fetch {source}; "
        "then copy the file here and set `weights: <file>`, or set `weights: random` for a test without meaning."
    )


def fetch_url(url: str, name: str) -> Path:
    """Return the path of a weight file of the internet, from torch's cache or downloaded into it and checked.

    Arguments:
        url: Its address; eight or more hexadecimal digits before the suffix are the start of its SHA-256.
        name: The encoder's name, for the message.

    Raises:
        WeightsError: If it is not in the cache and cannot be downloaded.
    """
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]
    if path.exists():
        return path
    if offline():
        raise cannot_get(name, f"HF_HUB_OFFLINE is set and {path} does not exist", url)
    path.parent.mkdir(parents=True, exist_ok=True)
    digest = re.search(r"-([0-9a-f]{8,})\.", path.name)
    try:
        torch.hub.download_url_to_file(url, str(path), digest and digest.group(1), progress=False)
    except (OSError, RuntimeError) as error:
        raise cannot_get(name, f"the download failed ({error})", url) from error
    return path


def read_weights(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read named tensors from a .safetensors, .pth, .pt or .bin file, never running code from it.

    Arguments:
        path: The file; a dictionary that holds the weights under "state_dict" or "model" is unwrapped.

    Raises:
        WeightsError: If the file is missing, of another kind, damaged, or holds something else.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise WeightsError(
            f"Expected `weights` to be pretrained, bundled, random or a file ending in {', '.join(SUFFIXES)}, "
            f"but got {str(path)!r}."
        )
    if not path.is_file():
        raise WeightsError(f"Expected a file of weights at {path}, but there is none. Check `weights`.")
    content = _read(path)
    for wrapper in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise WeightsError(
            f"Expected {path} to hold named tensors, but it holds {_describe(content)}. "
            "Save the network's state_dict()."
        )
    return dict(content)


def _read(path: Path) -> Any:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        raise WeightsError(
            f"Expected {path} to be a whole file of tensors and nothing else, but reading it failed: "
            f"{why_unreadable(path, error)} Fetch it again, or save it with torch.save(network.state_dict(), ...)."
        ) from error


def why_unreadable(path: str | os.PathLike[str], error: Exception) -> str:
    """Say in a sentence why a file of weights cannot be read, from its first bytes where they show it.

    Torch's own message advises to read the file without its protection (`weights_only=False`), which would run any code
    that the file holds. It is never passed on.

    Arguments:
        path: The file.
        error: What reading it raised.
    """
    try:
        with open(path, "rb") as file:
            start = file.read(256).lstrip()
    except OSError:
        start = b""
    if start.startswith(b"<"):
        return "it is a web page that was saved instead of the weights (a login page, or a wrong address)."
    if start.startswith(b"version https://git-lfs"):
        return "it is a pointer of Git LFS; `git lfs pull` fetches the file itself."
    if isinstance(error, UnpicklingError):
        if start.startswith((b"PK", b"\x80")):
            return "it holds other objects than tensors, and reading those could run code of its author."
        return f"it is no file of torch, it begins with {start[:20]!r}."
    return str(error).split("\n", 1)[0]


def _describe(content: Any) -> str:
    if not isinstance(content, Mapping):
        return f"a {type(content).__name__}"
    others = [str(key) for key, value in content.items() if not isinstance(value, Tensor)]
    return f"also {_some(others)}" if others else "nothing"


def in_heads(key: str, heads: Iterable[str]) -> bool:
    """Return whether a key of a state_dict, or a module's name, belongs to one of the classifier's modules."""
    return any(key == head or key.startswith(f"{head}.") for head in heads)


def fit_weights(
    module: nn.Module,
    state: Mapping[str, Tensor],
    *,
    heads: Iterable[str],
    source: str,
    convert: Callable[[dict[str, Tensor], nn.Module], dict[str, Tensor]] | None = None,
) -> dict[str, Any]:
    """Load weights so that every tensor but the classifier's has one place, and every place its tensor.

    Arguments:
        module: The network to fill.
        state: Named tensors.
        heads: Modules of the classifier, whose tensors may be missing or left over.
        source: Where the weights come from, for the message.
        convert: Tried once when the names or shapes differ.

    Returns:
        {"ignored": names of the classifier's tensors that were left over, "converted": whether `convert` was needed},
        and {"prefix": what was removed from the beginning of every name} where DataParallel or torch.compile put one.

    Raises:
        WeightsError: If names or shapes differ; lists them.
    """
    heads = tuple(heads)
    prefix, state = _without_prefix(state, module)
    given = dict(state)
    converted = False
    if convert is not None and _differences(module, given, heads):
        try:
            given, converted = dict(convert(given, module)), True
        except Exception:  # a converter may fail in any way on unknown names, which the message below lists
            given = dict(state)
    if differences := _differences(module, given, heads):
        raise WeightsError(
            f"Expected weights for {source}, but they do not fit: {'; '.join(differences)}. "
            "Check that the file and the name of the encoder belong together."
        )
    module.load_state_dict({key: value for key, value in given.items() if not in_heads(key, heads)}, strict=False)
    facts = {"ignored": sorted(key for key in given if in_heads(key, heads)), "converted": converted}
    return {**facts, "prefix": prefix} if prefix else facts


def _without_prefix(state: Mapping[str, Tensor], module: nn.Module) -> tuple[str, dict[str, Tensor]]:
    """Return the prefix that all names have and the network's own do not, and the tensors without it."""
    removed, given = "", dict(state)
    foreign = [prefix for prefix in PREFIXES if not any(key.startswith(prefix) for key in module.state_dict())]
    while prefix := next((p for p in foreign if given and all(key.startswith(p) for key in given)), ""):
        removed += prefix
        given = {key.removeprefix(prefix): tensor for key, tensor in given.items()}
    return removed, given


def _differences(module: nn.Module, given: Mapping[str, Tensor], heads: tuple[str, ...]) -> list[str]:
    own = {key: value for key, value in module.state_dict().items() if not in_heads(key, heads)}
    missing = [key for key in own if key not in given and not key.endswith(COUNTER)]
    unexpected = [key for key in given if key not in own and not in_heads(key, heads)]
    shapes = [
        f"{key} {tuple(given[key].shape)} instead of {tuple(own[key].shape)}"
        for key in own
        if key in given and given[key].shape != own[key].shape
    ]
    kinds = {"missing": missing, "unexpected": unexpected, "of another shape": shapes}
    return [f"{len(keys)} {kind} ({_some(keys)})" for kind, keys in kinds.items() if keys]


def _some(keys: list[str], limit: int = 6) -> str:
    return ", ".join(keys[:limit]) + (f" and {len(keys) - limit} more" if len(keys) > limit else "")


def weights_digest(state: Mapping[str, Tensor], heads: Iterable[str] = ()) -> str:
    """Compute the SHA-256 over names, types, shapes and values of the weights, independent of the file format.

    Two networks with the same digest give the same features. The classifier and BatchNorm's counters do not count,
    so timm's, torchvision's and the authors' copies of the same ResNet agree.

    Arguments:
        state: Named tensors.
        heads: Modules of the classifier.

    Returns:
        64 hexadecimal digits.

    Example:
        >>> state = {"a": torch.zeros(2), "fc.bias": torch.ones(3)}
        >>> weights_digest(state, ["fc"]) == weights_digest({"a": torch.zeros(2)})
        True
    """
    heads = tuple(heads)
    digest = hashlib.sha256()
    for key in sorted(state):
        if key.endswith(COUNTER) or in_heads(key, heads):
            continue
        tensor = state[key].detach().cpu().contiguous()
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
