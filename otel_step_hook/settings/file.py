"""Reads the settings of several receivers, from a TOML file or from a sequence."""

import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence

from otel_step_hook.errors import ConfigurationError
from otel_step_hook.settings.parsing import PREFIX, did_you_mean, read_path
from otel_step_hook.settings.receiver import EndpointSettings, endpoint_label

_LONGEST_PATH = 4096  # characters; PATH_MAX of Linux, and more than macOS takes
# One slash after the scheme is enough: `pathlib.Path` turns two into one.
_NO_PATH = re.compile(r"://|https?:/|[\r\n]|\[\[", re.IGNORECASE)
ENDPOINTS = "the path of a TOML file with an [[endpoint]] for each receiver"


def read_endpoints(value: object) -> object:
    """Return the `EndpointSettings` in *value*: the path of a file, or a sequence of them or of mappings.

    None and an empty path give an empty tuple.
    """
    value = read_path(value)
    if value is None:
        return ()
    if isinstance(value, str):
        path = _checked(value)
        return _endpoints(_tables(path), _shown(path))
    if not isinstance(value, Sequence):
        raise ValueError(f"is of type {type(value).__name__}")  # noqa: TRY004 -- pydantic expects a ValueError
    return _endpoints(value, f"{PREFIX}ENDPOINTS")


def _checked(path: str) -> str:
    """Return *path*. Raises ValueError for a URL or the text of a file, without showing it: secrets may be in it."""
    if _NO_PATH.search(path):
        raise ValueError("holds a URL or the text of a file")
    if len(path) > _LONGEST_PATH:
        raise ValueError(f"holds more than {_LONGEST_PATH} characters")
    return path


def _endpoints(tables: Iterable[object], place: str) -> tuple[EndpointSettings, ...]:
    """Read all *tables*, which are from *place*; one error reports all wrong ones."""
    endpoints, wrong = [], []
    for number, table in enumerate(tables, start=1):
        try:
            endpoints.append(_endpoint(table))
        except ConfigurationError as error:
            is_named = isinstance(table, Mapping) and endpoint_label(table)
            wrong.append(f"{place}, {'' if is_named else f'endpoint {number}: '}{error}")
    if wrong:
        raise ConfigurationError("; ".join(wrong))
    return tuple(endpoints)


def _endpoint(table: object) -> EndpointSettings:
    if isinstance(table, EndpointSettings):
        return table
    if not isinstance(table, Mapping):
        raise ConfigurationError(f"is of type {type(table).__name__}; expected the settings of one receiver")
    return EndpointSettings(**{str(name): value for name, value in table.items()})


def _shown(path: str) -> str:
    """*path* for a message: bytes that are not UTF-8 are escaped, because pydantic accepts no text with them."""
    return path.encode("utf-8", "backslashreplace").decode()


def _tables(path: str) -> list[object]:
    document, shown = _document(path), _shown(path)
    for name in document:
        if name != "endpoint":
            raise ConfigurationError(
                f"{shown}: {name} stands outside of an [[endpoint]]{did_you_mean(name, ['endpoint'])}; "
                "expected nothing but an [[endpoint]] for each receiver"
            )
    tables = document.get("endpoint")
    if not isinstance(tables, list) or not tables:
        raise ConfigurationError(
            f"{shown}: there is no [[endpoint]], in double brackets; expected one for each receiver"
        )
    return tables


def _document(path: str) -> dict[str, object]:
    try:
        with open(path, "rb") as file:  # noqa: PTH123 -- *path* is opened exactly as given
            return tomllib.load(file)
    except OSError as error:
        problem = f"cannot be read ({error.strerror})"
    except (ValueError, RecursionError) as error:  # not TOML, not UTF-8; nested too deeply
        place = re.search(r"\(at [a-z0-9, ]+\)$", str(error))
        problem = f"is no TOML {place[0] if place else ''}".rstrip()
    # Raised outside of `except`: the caught error may hold the text of the file, and with it secrets.
    raise ConfigurationError(f"{PREFIX}ENDPOINTS names {_shown(path)}, which {problem}; expected {ENDPOINTS}")
