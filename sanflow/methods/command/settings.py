"""Settings of the method `command`: an argument list with placeholders."""

import re
from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field, field_validator

from sanflow.config.experiment import Experiment
from sanflow.config.names import ExpandedPath, require_text
from sanflow.errors import did_you_mean
from sanflow.methods.method import MapMaker

PLACEHOLDERS = ("train", "test", "maps", "seed", "device", "height", "width")
# A tool may need no training images (zero-shot), no seed and so on.
NEEDED = ("test", "maps")
# Not `${HOME}` of a shell, and not the braces of JSON, which do not enclose a bare word.
PLACEHOLDER = re.compile(r"(?<!\$)\{(\w+)\}")


class CommandExperiment(Experiment):
    """A tool of any kind, run as a job on neutral copies of the training and test images; it writes anomaly maps."""

    method: Literal["command"]
    command: list[Annotated[str, BeforeValidator(require_text)]] = Field(min_length=1)
    """Program and arguments; no shell. Replaced in them: `{train}` and `{test}` (folders of images), `{maps}` (folder
    for one map per test image), `{seed}`, `{device}` (`cuda` or `cpu`), `{height}` and `{width}` (of `input_size`)."""
    files: list[ExpandedPath] = Field([])
    """Files that decide the maps, such as the tool's script: an edit of one runs the tool again."""
    timeout: float | None = Field(None, gt=0)
    """Minutes after which the command is ended and its job fails; unset: no limit."""

    not_fitted: ClassVar[frozenset[str]] = Experiment.not_fitted | {"timeout"}

    @field_validator("command")
    @classmethod
    def _check_placeholders(cls, command: list[str]) -> list[str]:
        found = [name for argument in command for name in PLACEHOLDER.findall(argument)]
        for name in found:
            if name not in PLACEHOLDERS:
                known = ", ".join(f"{{{known}}}" for known in PLACEHOLDERS)
                raise ValueError(
                    f"expected placeholders among {known}, but got {{{name}}}." + did_you_mean(name, PLACEHOLDERS)
                )
        for name in NEEDED:
            if name not in found:
                raise ValueError(
                    f"expected the placeholder {{{name}}} in an argument, as the tool cannot know that folder otherwise"
                )
        return command

    def arguments(self, values: Mapping[str, str]) -> list[str]:
        """Return the command with the values of its placeholders.

        Arguments:
            values: Name of a placeholder -> its value, for all of `PLACEHOLDERS`.

        Example:
            >>> tool = CommandExperiment(method="command", command=["tool", "--in={test}", '{"out": "{maps}"}'])
            >>> tool.arguments({"test": "a", "maps": "b"})
            ['tool', '--in=a', '{"out": "b"}']
        """
        return [PLACEHOLDER.sub(lambda match: values[match[1]], argument) for argument in self.command]

    def files_for(self, dataset: str, category: str) -> dict[str, str]:
        """Return the files that decide the maps."""
        return {f"files[{number}]": path for number, path in enumerate(self.files)}


COMMAND = MapMaker("command", CommandExperiment, make_function="sanflow.methods.command.maker:make")
