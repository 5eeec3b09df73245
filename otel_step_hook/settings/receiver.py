"""The settings of one receiver, as all receivers share them or as one endpoint has them."""

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
    model_validator,
)
from pydantic_core import ErrorDetails

from otel_step_hook.delivery.signing import parse_secrets
from otel_step_hook.errors import ConfigurationError
from otel_step_hook.settings.parsing import (
    PREFIX,
    check_file,
    check_headers,
    did_you_mean,
    name_from_url,
    read_headers,
    read_key,
    read_list,
    read_number,
    read_one_url,
    read_path,
    read_signing_secret,
    read_url,
)
from otel_step_hook.steps.event import Outcome

Seconds = Annotated[float, Field(gt=0, le=315_360_000, allow_inf_nan=False), BeforeValidator(read_number)]
URL = "an absolute URL such as https://example.com/hook"
SECONDS = "a number of seconds above 0 and up to 315360000 (ten years), such as 15"
_Path = Annotated[str | None, AfterValidator(check_file), BeforeValidator(read_path)]
_FILE = "the path of a PEM file that can be read"
_NAME = r"^[A-Za-z0-9_.-]{1,64}$"  # it becomes a metric's label and part of a row's key
_VARIABLES = {"key_env": "key", "signing_secret_env": "signing_secret"}  # settings that name a variable, and for what


def setting(default: object, meaning: str, expected: str, *, secret: bool = False) -> Any:
    """The default of a setting, with what README and the sentences about wrong values say of it."""
    return Field(default, description=meaning, json_schema_extra={"expected": expected}, repr=not secret)


class ReceiverSettings(BaseModel):
    """What can be set for one receiver. Raises `ConfigurationError`, which never shows the value of a secret."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    webhook: str | None = None  # first in the table; each class below says what it may hold
    key: Annotated[SecretStr | None, BeforeValidator(read_key)] = setting(
        None,
        "Secret, sent as `Authorization: Bearer …`.",
        "printable ASCII without line breaks, and without a space at either end",
        secret=True,
    )
    signing_secret: Annotated[SecretStr | None, BeforeValidator(read_signing_secret)] = setting(
        None,
        "One or more `whsec_…`, separated by spaces: Standard Webhooks signature, by each of them.",
        "'whsec_' followed by base64; make one with: otel-step-hook secret",
        secret=True,
    )
    payload: Literal["step_id", "full"] = setting(
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

    def __init__(self, /, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            wrong = "; ".join(self._error_message(item) for item in error.errors())
        else:
            return
        # Outside of `except`: pydantic's error holds the input, and with it the secrets; `from None`
        # would hide it and keep it.
        raise ConfigurationError(wrong)

    @classmethod
    def shown_name(cls, name: str) -> str:
        """What the setting *name* is called in a sentence."""
        return name

    @classmethod
    def known_names(cls) -> tuple[str, ...]:
        """All names that can be set, in the order of the class."""
        return tuple(cls.model_fields)

    @classmethod
    def _error_message(cls, item: ErrorDetails) -> str:
        """What is wrong with one setting: the name, what happened, what was expected; a secret never."""
        name, *inside = item["loc"] or ("",)
        error = item.get("ctx", {}).get("error")
        if isinstance(error, ConfigurationError):  # which says it all, of the variable
            return str(error).replace(f"{PREFIX}SIGNING_SECRET", cls.shown_name("signing_secret"))
        if item["type"] == "extra_forbidden":
            return f"{name} is not a setting{did_you_mean(str(name), cls.known_names())}"
        field = cls.model_fields[str(name)]
        expected = field.json_schema_extra["expected"] if isinstance(field.json_schema_extra, dict) else ""
        verb = "holds" if inside else "is"
        shown = reprlib.repr(item["input"]) if field.repr else f"of type {type(item['input']).__name__}"
        what = "is not set" if item["type"] == "missing" else error or f"{verb} {shown}"
        return f"{cls.shown_name(str(name))} {what}; expected {expected}"

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
        return self

    @property
    def signing_keys(self) -> tuple[bytes, ...]:
        """The decoded signing secrets; empty without any."""
        return parse_secrets(self.signing_secret.get_secret_value()) if self.signing_secret else ()


class EndpointSettings(ReceiverSettings):
    """One of several receivers, frozen. What is not set here is as `StepHookSettings` has it for all, or the default.

    *name* is what spans, metrics and logs call it; without one it is the host and a short hash of the URL.
    *key_env* and *signing_secret_env* name the environment variable that holds the secret, in place of the secret.
    Secrets are one receiver's own: *key*, *signing_secret* and *headers* are never those of `StepHookSettings`.

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

    def __init__(self, /, **values: Any) -> None:
        try:
            super().__init__(**_with_secrets(values))
        except ConfigurationError as error:
            raise ConfigurationError(f"{endpoint_label(values)}{error}") from None

    @classmethod
    def known_names(cls) -> tuple[str, ...]:
        """Those of the class, and those that name a variable."""
        return (*cls.model_fields, *_VARIABLES)

    @property
    def display_name(self) -> str:
        """Its name, or the one that is made from its URL."""
        return self.name or name_from_url(self.webhook)


def endpoint_label(values: Mapping[str, object]) -> str:
    """How a sentence about an endpoint with these settings begins; empty for one that has no name."""
    name = values.get("name")
    return f"endpoint {name!r}: " if isinstance(name, str) and re.fullmatch(_NAME, name) else ""


def _with_secrets(values: Mapping[str, object]) -> dict[str, object]:
    """*values*, with the secret in place of the name of the variable that holds it."""
    result = {name: value for name, value in values.items() if name not in _VARIABLES}
    for name, secret in _VARIABLES.items():
        variable = values.get(name)
        if variable is None:
            continue
        if values.get(secret) is not None:
            raise ConfigurationError(f"{secret} and {name} are both set: remove one of them")
        # Not shown: somebody might have put the secret itself there.
        result[secret] = os.environ.get(variable) if isinstance(variable, str) else None
        if not result[secret]:
            raise ConfigurationError(
                f"{name} names no environment variable that is set; "
                f"expected the name of one that holds the {secret.replace('_', ' ')}; correct it, or set that variable"
            )
    return result
