"""Tracking URIs: what may be shown of one, and whether its server answers at all."""

import re
import socket
from urllib.parse import urlsplit

DEFAULT_PORTS = {"http": 80, "https": 443, "postgresql": 5432, "mysql": 3306, "mssql": 1433}


def masked(text: str) -> str:
    """The text with the credentials of every URI in it replaced by `***`.

    Arguments:
        text: A URI, or a message that quotes some.

    Example:
        >>> masked("cannot reach postgresql://ada:secret@db.example:5432/runs?password=secret&sslmode=off")
        'cannot reach postgresql://***@db.example:5432/runs?password=***&sslmode=off'
    """
    # Up to the last @ of the word: a password may hold / or @ where it ought to be quoted.
    text = re.sub(r"(?<=://)[^\s'\"]*@", "***@", text)
    return re.sub(r"((?:password|passwd|token|secret|user)=)[^&\s'\"]+", r"\1***", text, flags=re.IGNORECASE)


def unreachable(uri: str, timeout: float = 3.0) -> str | None:
    """Why nothing listens at a server's address, or None if something does (or the URI names a file).

    MLflow retries a refused database connection for minutes; one connection tells the same at once.

    Arguments:
        uri: Any tracking URI.
        timeout: Seconds to wait for the connection.
    """
    try:
        parts = urlsplit(uri)
        port = parts.port or DEFAULT_PORTS.get(parts.scheme.split("+")[0])
    except ValueError:  # its message quotes the URI, and with it a password
        return "it is no valid address (quote special characters of a password as %xx, or keep it out of the URI)"
    if not parts.hostname or port is None:
        return None
    try:
        socket.create_connection((parts.hostname, port), timeout).close()
    except OSError as error:
        return f"{parts.hostname}:{port} does not answer ({error})"
    return None
