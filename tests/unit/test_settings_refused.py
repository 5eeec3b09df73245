"""What is refused for a setting: one clear sentence each. Secrets: test_settings_secrets.py."""

import re

import pytest
from refusals import Refuse, from_both, refusal

from otel_step_hook import ConfigurationError, StepHookProcessor

_URL = "; expected an absolute URL such as https://example.com/hook"
_SECONDS = "; expected a number of seconds above 0 and up to 315360000 (ten years), such as 15"


@from_both
@pytest.mark.parametrize("name", ["webhook", "proxy"])
@pytest.mark.parametrize(
    ("url", "what"),
    [
        ("SEKRET.example.com/hook", "has no scheme"),
        ("//SEKRET.example.com/hook", "has no scheme"),
        ("localhost:8080/SEKRET", "has no scheme"),
        ("https:/SEKRET", "has no scheme"),
        ("SEKRET?next=https://example.com", "has no scheme"),
        ("ftp://example.com/SEKRET", "has a scheme that is neither https nor http"),
        ("htps://example.com/SEKRET", "has a scheme that is neither https nor http"),
        ("https:///SEKRET", "has no host"),
        ("https://user:SEKRET@/", "has no host"),
        ("https://:8080/SEKRET", "has no host"),
        ("https://example.com:0/SEKRET", "has port 0, on which nothing can be reached"),
        ("https://[::1/SEKRET", "has a host or a port that cannot be read"),
        ("https://user:SEKRET@example.com:eighty/", "has a host or a port that cannot be read"),
        ("https://example.com:65536/SEKRET", "has a host or a port that cannot be read"),
        ("https://user:SEKRET/x@example.com/", "has a host or a port that cannot be read"),
        ("https://exam ple.com/SEKRET", "holds a space, a backslash or a control character"),
        ("https://example.com\\@SEKRET", "holds a space, a backslash or a control character"),
        ("https://example.com/SEKRET\r\nx-evil: 1", "holds a space, a backslash or a control character"),
    ],
)
def test_a_url_that_cannot_be_used_is_refused(
    refuse: Refuse, name: str, url: str, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A URL is told by what is wrong with it; nothing of it is shown, for any part may be secret."""
    told = refuse(monkeypatch, name, url, secret="SEKRET")
    assert told.startswith(f"STEP_COMPLETE_{name.upper()} {what}; expected an absolute URL such as http")


@from_both
@pytest.mark.parametrize(
    "host",
    [
        "169.254.169.254",
        "user@169.254.169.254:80",
        "2852039166",
        "0xa9fea9fe",
        "0251.0376.0251.0376",
        "169.16689662",
        "[::ffff:169.254.169.254]",
        "[fd00:ec2::254]",
        "169.254.170.2.",
        "metadata",
        "Metadata.Google.Internal.",
        "\uff4detadata",  # fullwidth m
        "\u2460\u2465\u2468.254.169.254",  # circled digits
    ],
)
def test_a_metadata_service_is_refused_however_it_is_spelled(
    refuse: Refuse, host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A webhook never asks a cloud for the machine's credentials."""
    told = refuse(monkeypatch, "webhook", f"http://{host}/latest")
    assert told == f"STEP_COMPLETE_WEBHOOK points to a cloud metadata service, which is refused{_URL}"


_NUMBERS = ["timeout", "give_up_after", "initial_backoff", "max_backoff", "shutdown_timeout"]


@from_both
@pytest.mark.parametrize("name", _NUMBERS)
@pytest.mark.parametrize("number", ["-1", "0", "nan", "inf", "-inf", "soon", "15s", "1e9", "0x10"])
def test_seconds_that_are_none_are_refused(
    refuse: Refuse, name: str, number: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A time is a finite number above 0, without a unit."""
    assert refuse(monkeypatch, name, number) == f"STEP_COMPLETE_{name.upper()} is {number!r}{_SECONDS}"


@from_both
@pytest.mark.parametrize(
    ("name", "number", "expected"),
    [
        ("backoff_multiplier", "0.5", "a number from 1 to 1000, such as 2"),
        ("backoff_multiplier", "nan", "a number from 1 to 1000, such as 2"),
        ("concurrency", "0", "a whole number from 1 to 1000, such as 8"),
        ("concurrency", "2.5", "a whole number from 1 to 1000, such as 8"),
        ("concurrency", "many", "a whole number from 1 to 1000, such as 8"),
        ("max_queue_size", "-5", "a whole number from 1 to 10000000, such as 2048"),
        ("max_queue_size", "inf", "a whole number from 1 to 10000000, such as 2048"),
    ],
)
def test_other_numbers_are_refused_with_their_range(
    refuse: Refuse, name: str, number: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What cannot be a count or a factor is told together with what can."""
    assert refuse(monkeypatch, name, number) == f"STEP_COMPLETE_{name.upper()} is {number!r}; expected {expected}"


@from_both
@pytest.mark.parametrize(
    ("name", "words", "told"),
    [
        ("payload", "everything", "is 'everything'; expected step_id or full"),
        ("outcomes", "success,done", "holds 'done'; expected some of success, failed, cancelled, separated by commas"),
        ("outcomes", ",", "names none; expected some of success, failed, cancelled, separated by commas"),
        (
            "profiles",
            "auto,crewai2",
            "names 'crewai2', which is no profile; expected auto, or some of agent-framework, airflow, autogen, ",
        ),
        ("profiles", " , ", "names none; expected auto, or some of agent-framework, airflow, autogen, "),
    ],
)
def test_unknown_words_are_refused_with_the_known_ones(
    refuse: Refuse, name: str, words: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An unknown outcome, profile or payload is told with those there are; none at all would disable the hook."""
    assert refuse(monkeypatch, name, words).startswith(f"STEP_COMPLETE_{name.upper()} {told}")


def test_no_outcome_at_all_is_refused() -> None:
    """An empty collection as an argument is a mistake, as an empty list of words is."""
    assert refusal(outcomes=[]).startswith("STEP_COMPLETE_OUTCOMES names none")


def test_every_wrong_setting_is_told_at_once() -> None:
    """Two mistakes are told in one go, so that they are mended in one."""
    told = refusal(timeout="soon", concurrency=0)
    assert re.fullmatch(r"STEP_COMPLETE_TIMEOUT is 'soon'; .*; STEP_COMPLETE_CONCURRENCY is 0; .*", told)


def test_a_long_value_is_cut() -> None:
    """A file's content that ended up in a variable does not fill the log."""
    assert len(refusal(payload="x" * 10_000)) < 200


# What does not go together


@pytest.mark.parametrize("name", ["key", "headers"])
def test_user_information_and_another_authorization_are_refused(name: str) -> None:
    """A request carries one authorization; which one is meant is not ours to guess."""
    other = {"key": "SEKRET", "headers": "Authorization=SEKRET"}[name]
    told = refusal("SEKRET", webhook="https://user:SEKRET@example.com/", **{name: other})
    assert told == (
        f"STEP_COMPLETE_WEBHOOK holds a user name and STEP_COMPLETE_{name.upper()} an authorization: "
        "a request carries one of them; remove the other"
    )


def test_a_key_and_an_authorization_among_the_headers_are_refused() -> None:
    """The same, for the other pair of the three."""
    assert refusal("SEKRET", key="SEKRET", headers="authorization=SEKRET") == (
        "STEP_COMPLETE_KEY and STEP_COMPLETE_HEADERS each hold an authorization: "
        "a request carries one of them; remove the other"
    )


@from_both
def test_a_client_key_without_a_certificate_is_refused(refuse: Refuse, monkeypatch: pytest.MonkeyPatch) -> None:
    """A private key proves nothing without its certificate."""
    told = refuse(monkeypatch, "client_key", "client.key")
    assert told == "STEP_COMPLETE_CLIENT_KEY is set without STEP_COMPLETE_CLIENT_CERTIFICATE: set both or none"


@pytest.mark.parametrize(("path", "what"), [("ca\0.pem", "holds a NUL"), (5, "is 5")])
def test_what_cannot_be_a_path_is_refused(path: object, what: str) -> None:
    """It is told as a setting, before the TLS library stumbles over it."""
    told = refusal(certificate=path)
    assert told == f"STEP_COMPLETE_CERTIFICATE {what}; expected the path of a PEM file that can be read"


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("webhok", "webhok is not a setting; did you mean webhook?"),
        ("STEP_COMPLETE_KEY", "STEP_COMPLETE_KEY is not a setting; did you mean key?"),
        ("give_up", "give_up is not a setting; did you mean give_up_after?"),
        ("xyzzy", "xyzzy is not a setting"),
    ],
)
def test_a_misspelt_argument_is_refused_with_the_nearest(name: str, told: str) -> None:
    """An argument that means nothing is a mistake in the program, and its value is not shown."""
    assert refusal("SEKRET", **{name: "SEKRET"}) == told


def test_a_processor_refuses_wrong_settings_at_start_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """The processor's constructor tells it, before the application has started a span."""
    monkeypatch.setenv("STEP_COMPLETE_WEBHOOK", "example.com")
    with pytest.raises(ConfigurationError, match="STEP_COMPLETE_WEBHOOK has no scheme"):
        StepHookProcessor()
