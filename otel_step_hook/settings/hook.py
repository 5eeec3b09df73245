"""The settings: owns pydantic-settings, the environment, and what is said about a wrong value."""

import os
import reprlib
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, PrivateAttr, SecretStr, ValidationError, model_validator
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from otel_step_hook.delivery.signing import parse_secrets
from otel_step_hook.errors import ConfigurationError
from otel_step_hook.settings.parsing import (
    PREFIX,
    check_headers,
    check_profiles,
    did_you_mean,
    read_headers,
    read_key,
    read_path,
    read_signing_secret,
    read_url,
    read_words,
)
from otel_step_hook.steps.event import Outcome
from otel_step_hook.steps.frameworks import PROFILES

_Seconds = Annotated[float, Field(gt=0, le=315_360_000, allow_inf_nan=False)]
_Path = Annotated[str | None, BeforeValidator(read_path)]
_URL = "an absolute URL such as https://example.com/hook"
_SECONDS = "a number of seconds above 0 and up to 315360000 (ten years), such as 15"
_FILE = "the path of a PEM file that can be read"


def _about(default: object, meaning: str, expected: str, *, secret: bool = False) -> Any:
    return Field(default, description=meaning, json_schema_extra={"expected": expected}, repr=not secret)


class StepHookSettings(BaseSettings):
    """All settings, frozen: from the arguments, else from ``STEP_COMPLETE_*``, else the defaults.

    Times are seconds. Raises `ConfigurationError`, which names the variable, what was expected
    and what to do, and never shows the value of a secret.
    """

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_ignore_empty=True, frozen=True, extra="forbid", hide_input_in_errors=True
    )

    webhook: Annotated[str | None, BeforeValidator(read_url)] = _about(
        None,
        "Endpoint that receives a POST when a step ends. Unset or empty: nothing is sent.",
        _URL,
        secret=True,
    )
    key: Annotated[SecretStr | None, BeforeValidator(read_key)] = _about(
        None,
        "Secret, sent as `Authorization: Bearer …`.",
        "printable ASCII without line breaks, and without a space at either end",
        secret=True,
    )
    signing_secret: Annotated[SecretStr | None, BeforeValidator(read_signing_secret)] = _about(
        None,
        "One or more `whsec_…`, separated by spaces: Standard Webhooks signature, by each of them.",
        "'whsec_' followed by base64; make one with: otel-step-hook secret",
        secret=True,
    )
    payload: Literal["step_id", "full"] = _about(
        "step_id",
        '`step_id`: exactly `{"step_id": "…"}`. `full`: the same key, and `type`, `timestamp`, `data`.',
        "step_id or full",
    )
    outcomes: Annotated[frozenset[Outcome], BeforeValidator(read_words), NoDecode] = _about(
        frozenset(Outcome),
        "Which outcomes are sent.",
        "some of success, failed, cancelled, separated by commas",
    )
    profiles: Annotated[tuple[str, ...], AfterValidator(check_profiles), BeforeValidator(read_words), NoDecode] = (
        _about(
            ("auto",),
            "Which frameworks' step rules apply: `auto` for all of them, or their names.",
            f"auto, or some of {', '.join(sorted({profile.name for profile in PROFILES}))}, separated by commas",
        )
    )
    headers: Annotated[
        tuple[tuple[str, str], ...], AfterValidator(check_headers), BeforeValidator(read_headers), NoDecode
    ] = _about(
        (),
        "Extra headers, in the format of `OTEL_EXPORTER_OTLP_HEADERS`.",
        "name=value,name=value, percent-encoded, of printable ASCII",
        secret=True,
    )
    timeout: _Seconds = _about(15.0, "Seconds one attempt may take in all: DNS, connect, TLS, headers.", _SECONDS)
    give_up_after: _Seconds = _about(30.0, "Seconds from the step's end until a delivery is discarded.", _SECONDS)
    initial_backoff: _Seconds = _about(1.0, "Seconds to wait after the first failed attempt, with jitter.", _SECONDS)
    max_backoff: _Seconds = _about(3600.0, "The longest wait between two attempts, in seconds.", _SECONDS)
    backoff_multiplier: Annotated[float, Field(ge=1, le=1000, allow_inf_nan=False)] = _about(
        2.0, "How much longer each wait is than the one before it.", "a number from 1 to 1000, such as 2"
    )
    concurrency: Annotated[int, Field(ge=1, le=1000)] = _about(
        8, "Attempts in flight.", "a whole number from 1 to 1000, such as 8"
    )
    max_queue_size: Annotated[int, Field(ge=1, le=10_000_000)] = _about(
        2048,
        "Events in memory; beyond it the newest is dropped and counted.",
        "a whole number from 1 to 10000000, such as 2048",
    )
    shutdown_timeout: _Seconds = _about(10.0, "Seconds `shutdown()` and process exit may spend on draining.", _SECONDS)
    certificate: _Path = _about(
        None, "PEM file of the certificate authorities to trust instead of the usual ones.", _FILE
    )
    client_certificate: _Path = _about(None, "PEM file of the client certificate, for mutual TLS.", _FILE)
    client_key: _Path = _about(None, "PEM file of the client certificate's private key.", _FILE)
    proxy: Annotated[str | None, BeforeValidator(read_url)] = _about(
        None,
        "HTTP proxy to send through. The proxy variables of the environment are ignored.",
        "an absolute URL such as http://proxy.example.com:3128",
        secret=True,
    )

    _arguments: frozenset[str] = PrivateAttr(frozenset())

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            wrong = "; ".join(_sentence(item) for item in error.errors())
        else:
            self._arguments = frozenset(values)
            return
        # Outside of `except`: pydantic's error holds the input, and with it the secrets; `from None`
        # would hide it and keep it.
        raise ConfigurationError(wrong)

    @model_validator(mode="after")
    def _agree(self) -> Self:
        authorized = "STEP_COMPLETE_HEADERS" if any(name == "authorization" for name, _ in self.headers) else None
        if self.key is not None and authorized:
            raise ConfigurationError(
                "STEP_COMPLETE_KEY and STEP_COMPLETE_HEADERS each hold an authorization: "
                "a request carries one of them; remove the other"
            )
        if self.key is not None:
            authorized = "STEP_COMPLETE_KEY"
        if authorized and self.webhook and "@" in urlsplit(self.webhook).netloc:
            raise ConfigurationError(
                f"STEP_COMPLETE_WEBHOOK holds a user name and {authorized} an authorization: "
                "a request carries one of them; remove the other"
            )
        if self.client_key and not self.client_certificate:
            raise ConfigurationError(
                "STEP_COMPLETE_CLIENT_KEY is set without STEP_COMPLETE_CLIENT_CERTIFICATE: set both or none"
            )
        return self

    @property
    def signing_keys(self) -> tuple[bytes, ...]:
        """The decoded signing secrets; empty without any."""
        return parse_secrets(self.signing_secret.get_secret_value()) if self.signing_secret else ()


def _sentence(item: ErrorDetails) -> str:
    """What is wrong with one setting: the name, what happened, what was expected; a secret never."""
    error = item.get("ctx", {}).get("error")
    if isinstance(error, ConfigurationError):
        return str(error)
    name, *inside = item["loc"]
    if item["type"] == "extra_forbidden":
        return f"{name} is not a setting{did_you_mean(str(name), StepHookSettings.model_fields)}"
    field = StepHookSettings.model_fields[str(name)]
    extra = field.json_schema_extra
    expected = extra["expected"] if isinstance(extra, dict) else ""
    verb = "holds" if inside else "is"
    shown = reprlib.repr(item["input"]) if field.repr else f"of type {type(item['input']).__name__}"
    return f"{PREFIX}{str(name).upper()} {error or f'{verb} {shown}'}; expected {expected}"


def has_webhook() -> bool:
    """Whether the environment names an endpoint, whatever is wrong with it."""
    return any(name.upper() == f"{PREFIX}WEBHOOK" and value.strip() for name, value in os.environ.items())


def unknown_variables() -> list[str]:
    """A sentence for each variable of the environment that starts with the prefix and is no setting."""
    known = [PREFIX + name.upper() for name in StepHookSettings.model_fields]
    return [
        f"{name} is not a setting of otel-step-hook{did_you_mean(name, known)}"
        for name in sorted(os.environ)
        if name.upper().startswith(PREFIX) and name.upper() not in known
    ]


@dataclass(frozen=True, slots=True)
class SettingRow:
    """One setting, as people read it: in README's table and in ``otel-step-hook check``."""

    name: str
    variable: str
    default: str
    meaning: str
    is_secret: bool


def setting_rows() -> list[SettingRow]:
    """Every setting in the order of the class."""
    return [
        SettingRow(name, PREFIX + name.upper(), _shown(field.default), field.description or "", not field.repr)
        for name, field in StepHookSettings.model_fields.items()
    ]


def _shown(value: object) -> str:
    if value in (None, ()):
        return "unset"
    if isinstance(value, frozenset):
        return ",".join(word for word in Outcome if word in value)
    if isinstance(value, tuple):
        return ",".join(str(word) for word in value)
    return str(value).removesuffix(".0") if isinstance(value, float) else str(value)


def in_force(settings: StepHookSettings) -> dict[str, tuple[str, str]]:
    """For each setting its value, ``***`` for a secret, and its source: environment, argument or default."""
    result = {}
    for row in setting_rows():
        value = _shown(getattr(settings, row.name))
        source = "environment" if row.name in settings.model_fields_set else "default"
        if row.name in settings._arguments:  # noqa: SLF001 -- ours
            source = "argument"
        result[row.name] = ("***" if row.is_secret and value != "unset" else value, source)
    return result
