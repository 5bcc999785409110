"""Validate settings strictly; report every error with its key and the nearest valid name."""

import datetime
import reprlib
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from sanflow.errors import ConfigError, did_you_mean

Checked = TypeVar("Checked", bound=BaseModel)


class StrictModel(BaseModel):
    """A model that refuses unknown keys and cannot be changed."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


def validated(model: type[Checked], values: Mapping[str, Any], source: str) -> Checked:
    """Check values against a model.

    Arguments:
        model: The model that the values must match.
        values: As read from YAML.
        source: Where they come from, for the message.

    Raises:
        ConfigError: With every fault, each with its key and, for a misspelt one, the nearest valid name.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        faults = [f"  {_place(fault, model)}: {_message(fault, model)}" for fault in error.errors(include_url=False)]
        raise ConfigError(f"{source} is not a valid configuration:\n" + "\n".join(faults)) from error


def _place(fault: Any, model: type[BaseModel]) -> str:
    return ".".join(str(part) for part, _ in _walk(fault["loc"], model) if part != "[key]") or "(whole file)"


def _message(fault: Any, model: type[BaseModel]) -> str:
    kind = fault["type"]
    if kind == "extra_forbidden":
        name, names = str(fault["loc"][-1]), _keys_beside(fault["loc"], model)
        if len(fault["loc"]) > 1 and name in model.model_fields:
            return f"the key {name!r} belongs to the top of the file, not here"
        return f"unknown key {name!r}; valid keys: {', '.join(names)}." + did_you_mean(name, names)
    if kind in {"union_tag_invalid", "union_tag_not_found"}:
        return _wrong_tag(fault)
    message = str(fault["msg"]).removeprefix("Value error, ")
    if kind == "string_type" and isinstance(fault["input"], int | float | datetime.date):
        return f"{message}, but got {fault['input']!r}: quote it, as '{fault['input']}'"
    # Errors of our own validators already say what was found; for a missing key there is nothing to show.
    return message if kind in {"value_error", "missing"} else f"{message}, but got {_brief(fault['input'])}"


def _wrong_tag(fault: Any) -> str:
    """Describe a missing or unknown `method`."""
    context = fault["ctx"]
    key = context["discriminator"].strip("'")
    if fault["type"] == "union_tag_not_found":
        return f"needs the key `{key}`"
    known = [name.strip(" '") for name in context["expected_tags"].split(",")]
    return f"expected `{key}` to be one of {', '.join(known)}, but got {context['tag']!r}." + did_you_mean(
        str(context["tag"]), known
    )


def _brief(value: Any) -> str:
    return repr(value) if isinstance(value, str) else reprlib.repr(value)


def _keys_beside(location: tuple[int | str, ...], model: type[BaseModel]) -> list[str]:
    """Return the names of the keys of the (sub)model in which the key at `location` is."""
    owners = [owner for _, owner in _walk(location, model)]
    return sorted(owners[-1].model_fields)


def _walk(location: tuple[int | str, ...], model: type[BaseModel]) -> Iterator[tuple[int | str, type[BaseModel]]]:
    """Give each key of a fault's location with the model around it; the tag of a union is no key."""
    owner: Any = model
    here: Any = model
    for part in location:
        kind = _choose(here, part)
        if kind is not here and _tag_of(kind) == part:
            here = owner = kind
            continue
        if _is_model(kind):
            owner = kind
            field = kind.model_fields.get(str(part))
            here = Any if field is None else field.annotation
        else:
            here = next(iter(typing.get_args(kind)[-1:]), Any)
        yield part, owner


def _choose(annotation: Any, part: int | str) -> Any:
    """Choose the type, out of those that an annotation allows, in which a part of a location is."""
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return _choose(typing.get_args(annotation)[0], part)
    if origin in {typing.Union, types.UnionType}:
        kinds = [_choose(kind, part) for kind in typing.get_args(annotation)]
        containers = [kind for kind in kinds if _is_model(kind) or typing.get_origin(kind) in {dict, list}]
        return next((kind for kind in containers if _tag_of(kind) == part), containers[0] if containers else Any)
    return annotation


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _tag_of(kind: Any) -> Any:
    field = kind.model_fields.get("method") if _is_model(kind) else None
    return next(iter(typing.get_args(field.annotation)), None) if field is not None else None
