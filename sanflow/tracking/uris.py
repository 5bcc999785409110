"""Hide the passwords of tracking URIs, and check whether a server answers."""

import os
import re
import socket
from urllib.parse import urlsplit

import requests

URI_VARIABLE = "SANFLOW_TRACKING_URI"
CONNECT_SECONDS = 3.0
REQUEST_SECONDS = 15
DATABASE_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
# Codes of a proxy that cannot reach the server behind it.
GATEWAY_ERRORS = {502, 503, 504}


def masked(text: str) -> str:
    """Replace the credentials of every URI in a text by `***`.

    Arguments:
        text: A URI, or a message that quotes some.

    Example:
        >>> masked("cannot reach postgresql://ada:secret@db.example:5432/runs?password=secret&sslmode=off")
        'cannot reach postgresql://***@db.example:5432/runs?password=***&sslmode=off'
    """
    # Up to the last @ of the word: a password may hold / or @ that should have been quoted.
    text = re.sub(r"(?<=://)[^\s'\"]*@", "***@", text)
    return re.sub(r"((?:password|passwd|token|secret|user)=)[^&\s'\"]+", r"\1***", text, flags=re.IGNORECASE)


def request_seconds() -> float:
    """Return how long one request to a server may take: the user's MLFLOW_HTTP_REQUEST_TIMEOUT, else 15 s."""
    return float(os.environ.get("MLFLOW_HTTP_REQUEST_TIMEOUT", REQUEST_SECONDS))


def unreachable(uri: str) -> str | None:
    """Find out why a server does not answer.

    MLflow retries a refused connection for minutes; one request finds out at once. An HTTP server is asked by HTTP,
    because there may be a proxy.

    Arguments:
        uri: Any tracking URI.

    Returns:
        The reason, or None if the server answers or the URI names a file.
    """
    try:
        parts = urlsplit(uri)
        port = parts.port or DATABASE_PORTS.get(parts.scheme.split("+")[0])
    except ValueError:  # its message quotes the URI, and with it a password
        return "it is no valid address (write special characters of a password as %xx, or keep it out of the URI)"
    if parts.scheme in {"http", "https"}:
        return _no_answer(uri)
    if not parts.hostname or port is None:
        return None
    try:
        socket.create_connection((parts.hostname, port), CONNECT_SECONDS).close()
    except OSError as error:
        return f"{parts.hostname}:{port} does not answer ({error})"
    return None


def _no_answer(uri: str) -> str | None:
    try:
        answer = requests.get(
            uri.rstrip("/") + "/health",
            timeout=(CONNECT_SECONDS, request_seconds()),
            allow_redirects=False,
            stream=True,
        )
        answer.close()
    except requests.exceptions.SSLError:
        return None  # the server answers; whether its certificate is good is decided by MLflow's settings
    except requests.exceptions.RequestException as error:
        return f"it does not answer ({masked(str(error))[:300]})"
    return f"it answers with code {answer.status_code}" if answer.status_code in GATEWAY_ERRORS else None
