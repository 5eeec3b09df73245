"""Several receivers, as they are written: in a TOML file, or as the settings of each."""

import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence

from otel_step_hook.errors import ConfigurationError
from otel_step_hook.settings.parsing import PREFIX, did_you_mean, read_path
from otel_step_hook.settings.receiver import EndpointSettings, endpoint_label

_LONGEST_PATH = 4096  # characters; PATH_MAX of Linux, and more than macOS takes
# One slash is enough: `pathlib.Path` makes one of two.
_NO_PATH = re.compile(r"://|https?:/|[\r\n]|\[\[", re.IGNORECASE)
ENDPOINTS = "the path of a TOML file with an [[endpoint]] for each receiver"


def read_endpoints(value: object) -> object:
    """The `EndpointSettings` that *value* holds: a path, or a sequence of them or of mappings; none for a blank."""
    value = () if value is None else read_path(value)
    if isinstance(value, str):
        path = _checked(value.strip())
        return _endpoints(_tables(path), _shown(path)) if path else ()
    if not isinstance(value, Sequence):
        raise ValueError(f"is of type {type(value).__name__}")  # noqa: TRY004 -- pydantic makes its own error of it
    return _endpoints(value, f"{PREFIX}ENDPOINTS")


def _checked(path: str) -> str:
    """*path*; ValueError for what was meant for another variable or for the file: secrets may be in it."""
    if _NO_PATH.search(path):
        raise ValueError("holds a URL or the text of a file")
    if len(path) > _LONGEST_PATH:
        raise ValueError(f"holds more than {_LONGEST_PATH} characters")
    return path


def _endpoints(tables: Iterable[object], place: str) -> tuple[EndpointSettings, ...]:
    """All that are wrong are reported at once."""
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
    """*path* as a sentence can hold it: pydantic takes none with what is no UTF-8, which a path may be."""
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
        with open(path, "rb") as file:  # noqa: PTH123 -- what cannot be a path is an OSError here
            return tomllib.load(file)
    except OSError as error:
        problem = f"cannot be read ({error.strerror})"
    except (ValueError, RecursionError) as error:  # no TOML, no UTF-8; nested too deeply
        place = re.search(r"\(at [a-z0-9, ]+\)$", str(error))
        problem = f"is no TOML {place[0] if place else ''}".rstrip()
    # Outside of `except`: such an error may hold the text of the file, and with it the secrets.
    raise ConfigurationError(f"{PREFIX}ENDPOINTS names {_shown(path)}, which {problem}; expected {ENDPOINTS}")
