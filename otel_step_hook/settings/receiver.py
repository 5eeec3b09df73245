"""The settings of one receiver, which all receivers share or one endpoint has."""

import os
import re
import reprlib
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails

from otel_step_hook.delivery.model import HttpClient
from otel_step_hook.delivery.signing import parse_secrets
from otel_step_hook.errors import ConfigurationError, hide_arguments
from otel_step_hook.settings.parsing import (
    BLANKS,
    PREFIX,
    check_file,
    check_headers,
    check_public,
    did_you_mean,
    name_from_url,
    read_choice,
    read_headers,
    read_key,
    read_list,
    read_number,
    read_one_url,
    read_path,
    read_signing_secret,
    read_url,
    without_blanks,
)
from otel_step_hook.steps.event import Outcome

Seconds = Annotated[float, Field(gt=0, le=315_360_000, allow_inf_nan=False), BeforeValidator(read_number)]
URL = "an absolute URL such as https://example.com/hook"
SECONDS = "a number of seconds above 0 and up to 315360000 (ten years), such as 15"
SWITCH = "true or false (or 1 or 0, yes or no, on or off)"
_Path = Annotated[str | None, AfterValidator(check_file), BeforeValidator(read_path)]
_FILE = "the path of a PEM file that can be read"
_NAME = r"^[A-Za-z0-9_.-]{1,64}$"  # it becomes an attribute of spans and metrics
_VARIABLES = {"key_env": "key", "signing_secret_env": "signing_secret"}  # settings that name the variable of a secret


def setting(default: object, meaning: str, expected: str, *, secret: bool = False) -> Any:
    """A field with its default, the meaning for tables of settings, and what messages say is expected of a value."""
    return Field(default, description=meaning, json_schema_extra={"expected": expected}, repr=not secret)


class ReceiverSettings(BaseModel):
    """The settings of one receiver. Raises `ConfigurationError`, which never shows the value of a secret."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    webhook: str | None = None  # declared here to come first in the table; subclasses define its values
    key: Annotated[SecretStr | None, BeforeValidator(read_key)] = setting(
        None,
        "Secret, sent as `Authorization: Bearer …`.",
        "printable ASCII without line breaks",
        secret=True,
    )
    signing_secret: Annotated[SecretStr | None, BeforeValidator(read_signing_secret)] = setting(
        None,
        "One or more `whsec_…`, separated by spaces: Standard Webhooks signature, by each of them.",
        "'whsec_' followed by base64; make one with: otel-step-hook secret",
        secret=True,
    )
    payload: Annotated[Literal["step_id", "full"], BeforeValidator(read_choice)] = setting(
        "step_id",
        '`step_id`: exactly `{"step_id": "…"}`. `full`: the same key, and `type`, `timestamp`, `data`.',
        "step_id or full",
    )
    outcomes: Annotated[frozenset[Outcome], BeforeValidator(read_list)] = setting(
        frozenset(Outcome),
        "Which outcomes are sent.",
        "some of success, failed, cancelled, separated by commas",
    )
    headers: Annotated[tuple[tuple[str, str], ...], AfterValidator(check_headers), BeforeValidator(read_headers)] = (
        setting(
            (),
            "Extra headers, in the format of `OTEL_EXPORTER_OTLP_HEADERS`.",
            "name=value,name=value, percent-encoded, of printable ASCII",
            secret=True,
        )
    )
    timeout: Seconds = setting(15.0, "Seconds one attempt may take in all: DNS, connect, TLS, headers.", SECONDS)
    certificate: _Path = setting(
        None, "PEM file of the certificate authorities to trust instead of the usual ones.", _FILE
    )
    client_certificate: _Path = setting(None, "PEM file of the client certificate, for mutual TLS.", _FILE)
    client_key: _Path = setting(None, "PEM file of the client certificate's private key.", _FILE)
    proxy: Annotated[str | None, BeforeValidator(read_url)] = setting(
        None,
        "HTTP proxy to send through. The proxy variables of the environment are ignored.",
        "an absolute URL such as http://proxy.example.com:3128",
        secret=True,
    )
    http_client: Annotated[HttpClient, BeforeValidator(read_choice)] = setting(
        "auto",
        "The library that sends: `aiohttp`, which [is faster](performance.md) and comes with "
        "`pip install 'otel-step-hook[fast]'`, or `httpx`. `auto`: aiohttp where it can be used.",
        "auto, aiohttp or httpx",
    )
    public_only: bool = setting(
        default=False,
        meaning="Whether [addresses that are not public](security.md), such as private and loopback ones, are refused.",
        expected=SWITCH,
    )

    def __init__(self, /, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            wrong = "; ".join(self._error_message(item) for item in error.errors())
        else:
            return
        # Raised outside of `except`: pydantic's error holds the input, and with it secrets, despite
        # `hide_input_in_errors` (pydantic/pydantic#7461). With `from None` it would still be the `__context__`.
        raise ConfigurationError(wrong)

    @classmethod
    def shown_name(cls, name: str) -> str:
        """What messages call the setting *name*."""
        return name

    @classmethod
    def known_names(cls) -> tuple[str, ...]:
        """All names that can be set, in the order of the class."""
        return tuple(cls.model_fields)

    @classmethod
    def _error_message(cls, item: ErrorDetails) -> str:
        """The message about one wrong setting: its name, what is wrong and what was expected. It shows no secret."""
        name, *inside = item["loc"] or ("",)
        error = item.get("ctx", {}).get("error")
        if isinstance(error, ConfigurationError):  # a complete message, about the variable
            return str(error).replace(f"{PREFIX}SIGNING_SECRET", cls.shown_name("signing_secret"))
        if item["type"] == "extra_forbidden":
            return f"{name} is not a setting{did_you_mean(str(name), cls.known_names())}"
        field = cls.model_fields[str(name)]
        expected = field.json_schema_extra["expected"] if isinstance(field.json_schema_extra, dict) else ""
        verb = "holds" if inside else "is"
        shown = reprlib.repr(item["input"]) if field.repr else f"of type {type(item['input']).__name__}"
        what = "is not set" if item["type"] == "missing" else error or f"{verb} {shown}"
        return f"{cls.shown_name(str(name))} {what}; expected {expected}"

    @field_validator("*", mode="before")
    @classmethod
    def _remove_blanks(cls, value: object) -> object:
        return without_blanks(value)

    @model_validator(mode="after")
    def _agree(self) -> Self:
        webhook, key, headers = (self.shown_name(name) for name in ("webhook", "key", "headers"))
        authorized = headers if any(name == "authorization" for name, _ in self.headers) else None
        if self.key is not None and authorized:
            raise ConfigurationError(
                f"{key} and {headers} each hold an authorization: a request carries one of them; remove the other"
            )
        if self.key is not None:
            authorized = key
        if authorized and any("@" in urlsplit(url).netloc for url in (self.webhook or "").split()):
            raise ConfigurationError(
                f"{webhook} holds a user name and {authorized} an authorization: "
                "a request carries one of them; remove the other"
            )
        if self.client_key and not self.client_certificate:
            client_key, certificate = self.shown_name("client_key"), self.shown_name("client_certificate")
            raise ConfigurationError(f"{client_key} is set without {certificate}: set both or none")
        if self.public_only:
            refuse_private_addresses(self, self.shown_name("public_only"))
        return self

    @property
    def signing_keys(self) -> tuple[bytes, ...]:
        """The decoded signing secrets; empty without any."""
        return parse_secrets(self.signing_secret.get_secret_value()) if self.signing_secret else ()


class EndpointSettings(ReceiverSettings):
    """The settings of one of several receivers, frozen. `StepHookSettings` has the values of what is not set here.

    *name* identifies the receiver in spans, metrics and logs; by default it is the host and a short hash of the URL.
    *key_env* and *signing_secret_env* name the environment variable that holds the secret, in place of the secret.
    *key*, *signing_secret* and *headers* are secrets of one receiver: `StepHookSettings` never provides them.

    Raises `ConfigurationError`, which names the endpoint and the setting, and never shows the value of a secret.
    """

    name: Annotated[str, Field(pattern=_NAME)] | None = setting(
        None,
        "What spans, metrics and logs call this receiver; by default the host and a short hash of the URL.",
        "1 to 64 letters of ASCII, digits, '-', '_' and '.'",
    )
    webhook: Annotated[str, BeforeValidator(read_one_url)] = setting(
        ..., "Endpoint that receives a POST when a step ends.", URL, secret=True
    )

    @hide_arguments
    def __init__(self, /, **values: Any) -> None:
        try:
            super().__init__(**_with_secrets(values))
        except ConfigurationError as error:
            raise ConfigurationError(f"{endpoint_label(values)}{error}") from None

    @classmethod
    def known_names(cls) -> tuple[str, ...]:
        """The names of all fields, and of the settings that name a variable."""
        return (*cls.model_fields, *_VARIABLES)

    @property
    def display_name(self) -> str:
        """The name, or the one that is made from the URL."""
        return self.name or name_from_url(self.webhook)


def refuse_private_addresses(receiver: ReceiverSettings, public_only: str) -> None:
    """Raise `ConfigurationError` if the webhook has a literal address that is not public; *public_only* refuses it.

    Names are looked up, and their addresses checked, at each connection.
    """
    try:
        check_public(receiver.webhook or "")
    except ValueError as error:
        raise ConfigurationError(
            f"{receiver.shown_name('webhook')} {error}, which {public_only} refuses; "
            f"expected the public address of a receiver; correct it, or set {public_only} to false"
        ) from None


def endpoint_label(values: Mapping[str, object]) -> str:
    """The beginning of a message about the endpoint with these settings; empty if it has no valid name."""
    name = values.get("name")
    name = name.strip(BLANKS) if isinstance(name, str) else ""
    return f"endpoint {name!r}: " if re.fullmatch(_NAME, name) else ""


def _with_secrets(values: Mapping[str, object]) -> dict[str, object]:
    """*values*, with each secret in place of the name of its variable."""
    result = {name: value for name, value in values.items() if name not in _VARIABLES}
    for name, secret in _VARIABLES.items():
        variable = values.get(name)
        if variable is None:
            continue
        if values.get(secret) is not None:
            raise ConfigurationError(f"{secret} and {name} are both set: remove one of them")
        # The message does not show *variable*: it may be the secret itself, put in the wrong place.
        result[secret] = os.environ.get(variable.strip(BLANKS)) if isinstance(variable, str) else None
        if not result[secret]:
            raise ConfigurationError(
                f"{name} names no environment variable that is set; "
                f"expected the name of one that holds the {secret.replace('_', ' ')}; correct it, or set that variable"
            )
    return result
