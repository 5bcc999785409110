"""Recognise files that operating systems and tools leave in folders; they are ignored without a message."""

import re

LITTER = re.compile(
    r"""
      \._.*                                    # macOS: resource forks
    | \.DS_Store | \.Trashes | \.Spotlight-V100 | \.fseventsd | \.apdisk | Icon\r | __MACOSX
    | Thumbs\.db | ehthumbs\.db | desktop\.ini | \$RECYCLE\.BIN     # Windows
    | \.directory | \.nfs.* | \.fuse_hidden.* | .*~ | \#.*\# | \..*\.sw[op]  # Linux and editors
    | @eaDir | \.@__thumb                      # network storage
    | \.git(keep|ignore|attributes)? | \.dvc(ignore)? | \.keep | \.placeholder | \.ipynb_checkpoints
    """,
    re.VERBOSE | re.IGNORECASE,
)


def is_litter(name: str) -> bool:
    """Return whether a file or folder of this name is made by an operating system or a tool.

    Example:
        >>> [name for name in (".DS_Store", "._001.png", "Thumbs.db", "001.png", ".001.png") if is_litter(name)]
        ['.DS_Store', '._001.png', 'Thumbs.db']
    """
    return LITTER.fullmatch(name) is not None
