"""`StepHookSettings`, which has all settings. Owns pydantic-settings and the STEP_COMPLETE_… variables."""

import os
from collections import Counter
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, PrivateAttr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from otel_step_hook.errors import ConfigurationError, hide_arguments
from otel_step_hook.settings.file import ENDPOINTS, read_endpoints
from otel_step_hook.settings.parsing import (
    PREFIX,
    check_file,
    check_profiles,
    did_you_mean,
    name_from_url,
    read_choice,
    read_list,
    read_number,
    read_path,
    read_urls,
)
from otel_step_hook.settings.receiver import (
    SECONDS,
    SWITCH,
    URL,
    EndpointSettings,
    ReceiverSettings,
    Seconds,
    refuse_private_addresses,
    setting,
)
from otel_step_hook.steps.event import Outcome
from otel_step_hook.steps.frameworks import PROFILES

_DURABLE_GIVE_UP = 86_400.0  # seconds; with an outbox, deliveries outlive an outage of a day
_NOT_SHARED = ("key", "signing_secret", "headers")  # secrets of one receiver, sent to no other


class StepHookSettings(ReceiverSettings, BaseSettings):
    """All settings of a hook, from the arguments, else from ``STEP_COMPLETE_…`` variables, else the defaults. Frozen.

    A setting has the same name as its variable, without the prefix and in lower case. Times are in seconds.
    *endpoints*, which replaces *webhook*, is the path of a TOML file or a sequence with an `EndpointSettings` for each
    receiver. Raises `ConfigurationError`, which names the variable, what was expected and what to do, and never
    shows the value of a secret.
    """

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_ignore_empty=True, enable_decoding=False)

    webhook: Annotated[str | None, BeforeValidator(read_urls)] = setting(
        None,
        "Endpoint that receives a POST when a step ends; several, separated by spaces, share the other settings. "
        "Unset or empty: nothing is sent.",
        URL,
        secret=True,
    )
    endpoints: Annotated[tuple[EndpointSettings, ...], BeforeValidator(read_endpoints)] = setting(
        (),
        "Path of a TOML file with an `[[endpoint]]` for each of [several receivers](#several-receivers), instead of "
        "`STEP_COMPLETE_WEBHOOK`.",
        ENDPOINTS,
    )
    profiles: Annotated[tuple[str, ...], AfterValidator(check_profiles), BeforeValidator(read_list)] = setting(
        ("auto",),
        "Which frameworks' step rules apply: `auto` for all of them, or their names.",
        f"auto, or some of {', '.join(sorted({profile.name for profile in PROFILES}))}, separated by commas",
    )
    give_up_after: Seconds = setting(
        30.0, "Seconds from the step's end until a delivery is discarded; 86400 with an outbox.", SECONDS
    )
    initial_backoff: Seconds = setting(1.0, "Seconds to wait after the first failed attempt, with jitter.", SECONDS)
    max_backoff: Seconds = setting(3600.0, "The longest wait between two attempts, in seconds.", SECONDS)
    backoff_multiplier: Annotated[float, Field(ge=1, le=1000, allow_inf_nan=False), BeforeValidator(read_number)] = (
        setting(2.0, "How much longer each wait is than the one before it.", "a number from 1 to 1000, such as 2")
    )
    concurrency: Annotated[int, Field(ge=1, le=1000), BeforeValidator(read_number)] = setting(
        8, "Attempts in flight, per endpoint.", "a whole number from 1 to 1000, such as 8"
    )
    max_queue_size: Annotated[int, Field(ge=1, le=10_000_000), BeforeValidator(read_number)] = setting(
        2048,
        "Events in memory; beyond it the newest is dropped and counted.",
        "a whole number from 1 to 10000000, such as 2048",
    )
    shutdown_timeout: Seconds = setting(10.0, "Seconds `shutdown()` and process exit may spend on draining.", SECONDS)
    outbox: Annotated[str | None, AfterValidator(check_file), BeforeValidator(read_path)] = setting(
        None,
        "Path of a SQLite file on a local disk: what waits is kept there [until it is delivered](outbox.md), also when "
        "the process is killed. The directory must exist.",
        "the path of a file",
    )
    outbox_keep: Seconds = setting(
        604_800.0, "Seconds that discarded deliveries stay in the outbox, for `otel-step-hook outbox`.", SECONDS
    )
    outbox_max_rows: Annotated[int, Field(ge=1, le=1_000_000_000), BeforeValidator(read_number)] = setting(
        10_000_000,
        "Deliveries that may wait in the outbox; beyond it the newest is dropped and counted.",
        "a whole number from 1 to 1000000000, such as 10000000",
    )
    drain_on_sigterm: bool = setting(
        default=False,
        meaning="Whether a `SIGTERM` that would end the process at once "
        "[delivers what is queued first](processes.md#sigterm), within the longest shutdown timeout.",
        expected=SWITCH,
    )
    engine: Annotated[Literal["local", "temporal"], BeforeValidator(read_choice)] = setting(
        "local",
        "`local`: this process sends the webhooks. `temporal`: it hands them over [to Temporal](temporal.md), whose "
        "address and credentials come from Temporal's own variables.",
        "local or temporal",
    )
    task_queue: Annotated[str, Field(min_length=1, max_length=200)] = setting(
        "step-webhooks", "Temporal task queue of the webhooks.", "a name of 1 to 200 characters, such as step-webhooks"
    )
    schedule_to_close: Seconds = setting(
        30.0,
        "Seconds from Temporal's acceptance of a webhook until it is discarded. `…_TIMEOUT` is the start-to-close "
        "timeout of an attempt, and `…_GIVE_UP_AFTER` limits the handover.",
        SECONDS,
    )

    _arguments: frozenset[str] = PrivateAttr(frozenset())

    @hide_arguments
    def __init__(self, /, **values: Any) -> None:
        super().__init__(**values)
        self._arguments = frozenset(values)

    @classmethod
    def shown_name(cls, name: str) -> str:
        """The environment variable of the setting *name*."""
        return PREFIX + name.upper()

    @model_validator(mode="after")
    def _set_defaults_of_outbox(self) -> Self:
        if self.outbox is not None and "give_up_after" not in self.model_fields_set:
            self.__dict__["give_up_after"] = _DURABLE_GIVE_UP  # a default: not set, as far as anybody can see
        return self

    @model_validator(mode="after")
    def _agree_with_endpoints(self) -> Self:
        if not self.endpoints:
            return self
        if self.webhook is not None:
            raise ConfigurationError(
                "STEP_COMPLETE_WEBHOOK and STEP_COMPLETE_ENDPOINTS are both set: remove one of them, "
                "or make the webhook an endpoint"
            )
        for name in _NOT_SHARED:
            shared = getattr(self, name)
            # Once an endpoint has it, nobody expects that all have it.
            if shared and all(getattr(one, name) != shared for one in self.endpoints):
                raise ConfigurationError(
                    f"{self.shown_name(name)} is set beside STEP_COMPLETE_ENDPOINTS: what is a secret of one receiver "
                    f"is sent to no other; give it to its endpoint, as {name}, or remove it here"
                )
        return self

    @model_validator(mode="after")
    def _refuse_private_endpoints(self) -> Self:
        for one in self.endpoints if self.public_only else ():
            if "public_only" not in one.model_fields_set:
                try:
                    refuse_private_addresses(one, self.shown_name("public_only"))
                except ConfigurationError as error:
                    raise ConfigurationError(f"endpoint {one.display_name!r}: {error}") from None
        return self

    @model_validator(mode="after")
    def _agree_on_names(self) -> Self:
        names = [one.display_name for one in self.endpoints]
        urls = [name_from_url(url) for url in (self.webhook or "").split()]
        if twice := [name for name, count in Counter(names).items() if count > 1]:
            raise ConfigurationError(
                f"STEP_COMPLETE_ENDPOINTS has several endpoints that are called {twice[0]!r}; "
                "give each a name of its own"
            )
        if len(set(urls)) < len(urls):
            raise ConfigurationError(
                "STEP_COMPLETE_WEBHOOK holds URLs that differ in nothing but user name or fragment; remove one, "
                "or give each a name of its own in STEP_COMPLETE_ENDPOINTS"
            )
        return self


def unknown_variables() -> list[str]:
    """Return a sentence for each environment variable that starts with ``STEP_COMPLETE_`` and is no setting."""
    known = [PREFIX + name.upper() for name in StepHookSettings.model_fields]
    return [
        f"{name} is not a setting of otel-step-hook{did_you_mean(name, known)}"
        for name in sorted(os.environ)
        if name.upper().startswith(PREFIX) and name.upper() not in known
    ]


@dataclass(frozen=True, slots=True)
class SettingRow:
    """One row of the tables of settings: the one in docs/settings.md, and the one of ``otel-step-hook check``."""

    name: str
    variable: str
    default: str
    meaning: str
    is_secret: bool


def settings_of(owner: str, webhook: str | StepHookSettings | None, values: dict[str, Any]) -> StepHookSettings:
    """Return the settings that *owner*, a class, was called with: a webhook or all settings first, others by name."""
    if not isinstance(webhook, StepHookSettings):
        if webhook is not None and "webhook" in values:
            raise ConfigurationError("webhook is given twice; expected it first, or by its name")
        return StepHookSettings(**(values if webhook is None else {"webhook": webhook, **values}))
    if values:
        raise ConfigurationError(f"{owner} got a StepHookSettings, and beside it {', '.join(values)}; put all into one")
    return webhook


def setting_rows() -> list[SettingRow]:
    """Return a row for each setting, in the order of the class."""
    return [
        SettingRow(name, PREFIX + name.upper(), _shown(field.default), field.description or "", not field.repr)
        for name, field in StepHookSettings.model_fields.items()
    ]


def _shown(value: object) -> str:
    if value in (None, ()):
        return "unset"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, frozenset):
        return ",".join(outcome for outcome in Outcome if outcome in value)
    if isinstance(value, tuple):
        return ",".join(one.display_name if isinstance(one, EndpointSettings) else str(one) for one in value)
    return str(value).removesuffix(".0") if isinstance(value, float) else str(value)


def effective_settings(settings: StepHookSettings) -> dict[str, tuple[str, str]]:
    """Return by name each setting's value, ``***`` for a secret, and its source: environment, argument or default."""
    result = {}
    for row in setting_rows():
        value = _shown(getattr(settings, row.name))
        source = "environment" if row.name in settings.model_fields_set else "default"
        if row.name in settings._arguments:  # noqa: SLF001 -- ours
            source = "argument"
        result[row.name] = ("***" if row.is_secret and value != "unset" else value, source)
    return result
