"""Wrong values of settings: each is refused with one sentence. For secrets see test_settings_secrets.py."""

import re

import pytest
from refusals import assert_refused, refusal

from otel_step_hook import ConfigurationError, StepHookProcessor
from otel_step_hook.steps.plugins import profile_names

_URL = "; expected an absolute URL such as https://example.com/hook"
_PROXY = "; expected an absolute URL such as http://proxy.example.com:3128"
_SECONDS = "; expected a number of seconds above 0 and up to 315360000 (ten years), such as 15"


def test_a_url_that_cannot_be_used_is_refused() -> None:
    """The sentence says what is wrong with a URL and shows no part of it, because any part may be secret."""
    unreadable = "has a host or a port that cannot be read"
    unprintable = "holds a space, a backslash or a control character"
    urls = {
        "SEKRET.example.com/hook": "has no scheme",
        "//SEKRET.example.com/hook": "has no scheme",
        "localhost:8080/SEKRET": "has no scheme",
        "https:/SEKRET": "has no scheme",
        "SEKRET?next=https://example.com": "has no scheme",
        "ftp://example.com/SEKRET": "has a scheme that is neither https nor http",
        "htps://example.com/SEKRET": "has a scheme that is neither https nor http",
        "https:///SEKRET": "has no host",
        "https://user:SEKRET@/": "has no host",
        "https://:8080/SEKRET": "has no host",
        "https://example.com:0/SEKRET": "has port 0, on which nothing can be reached",
        "https://[::1/SEKRET": unreadable,
        "https://user:SEKRET@example.com:eighty/": unreadable,
        "https://example.com:65536/SEKRET": unreadable,
        "https://user:SEKRET/x@example.com/": unreadable,
        "https://example.com\\@SEKRET": unprintable,
        "https://example.com/SEKRET\x0bx-evil:1": unprintable,
        "https://us\udcff:SEKRET@example.com/": "holds what is no UTF-8",
        "https://example.com/SEKRET\udcff": "holds what is no UTF-8",
    }
    assert_refused(
        (name, url, f"STEP_COMPLETE_{name.upper()} {what}{expected}")
        for name, expected in (("webhook", _URL), ("proxy", _PROXY))
        for url, what in urls.items()
    )
    assert_refused([("proxy", "http://pro xy/SEKRET", f"STEP_COMPLETE_PROXY {unprintable}{_PROXY}")])


def test_a_wrong_url_among_several_is_given_by_its_number() -> None:
    """No URL is shown; a header injected after a line break counts as a URL, and is refused."""
    cases = {
        "https://exam ple.com/SEKRET": "has no scheme (URL 2 of 2)",
        "https://example.com/SEKRET\r\nx-evil: 1": "has no scheme (URL 2 of 3)",
        "https://a/SEKRET http://169.254.169.254/SEKRET": (
            "points to a cloud metadata service, which is refused (URL 2 of 2)"
        ),
    }
    assert_refused(("webhook", urls, f"STEP_COMPLETE_WEBHOOK {what}{_URL}") for urls, what in cases.items())


def test_urls_with_a_comma_between_are_refused() -> None:
    """URLs separated by commas are refused; the sentence says how to separate them, and how to write a comma."""
    comma = "holds a comma between URLs: separate them by spaces; a comma inside of one is %2C"
    cases = {
        "https://a/SEKRET,https://b/SEKRET": comma,
        "https://a/SEKRET,HTTP://b/SEKRET": comma,
        "https://a/SEKRET, https://b/SEKRET": f"{comma} (URL 1 of 2)",
        "https://a/ https://b/SEKRET,http://c/": f"{comma} (URL 2 of 2)",
    }
    assert_refused(("webhook", urls, f"STEP_COMPLETE_WEBHOOK {what}{_URL}") for urls, what in cases.items())
    proxy = "STEP_COMPLETE_PROXY holds several URLs with a comma between"
    assert_refused([("proxy", "http://SEKRET,http://b", f"{proxy}{_PROXY}")])
    for url in ("https://a/x,y,", "https://a/x,y https://b/,", "https://a/?to=https://b/%2Chttps://c/"):
        assert refusal(webhook=url) == "not refused"


def test_urls_that_differ_only_in_user_or_fragment_are_refused() -> None:
    """Two URLs that would give the same endpoint name are refused."""
    sentence = (
        "STEP_COMPLETE_WEBHOOK holds URLs that differ in nothing but user name or fragment; remove one, "
        "or give each a name of its own in STEP_COMPLETE_ENDPOINTS"
    )
    pairs = ["https://a:SEKRET@example.com/ https://example.com/", "https://example.com/#SEKRET https://example.com/"]
    assert_refused(("webhook", pair, sentence) for pair in pairs)
    for pair in pairs:  # as the sentence recommends
        named = [{"name": f"e{number}", "webhook": url} for number, url in enumerate(pair.split())]
        assert refusal(endpoints=named) == "not refused"


def test_a_metadata_service_is_refused_however_it_is_spelled() -> None:
    """No spelling of the address of a cloud metadata service is accepted."""
    hosts = [
        "169.254.169.254",
        "user@169.254.169.254:80",
        "2852039166",
        "0xa9fea9fe",
        "0251.0376.0251.0376",
        "169.16689662",
        "[::ffff:169.254.169.254]",
        "[fd00:ec2::254]",
        "169.254.170.2.",
        "Metadata.Google.Internal.",
        "\uff4detadata.goog",  # fullwidth m
        "\u2460\u2465\u2468.254.169.254",  # circled digits
    ]
    sentence = f"STEP_COMPLETE_WEBHOOK points to a cloud metadata service, which is refused{_URL}"
    assert_refused(("webhook", f"http://{host}/latest", sentence) for host in hosts)


def test_a_percent_encoded_host_is_refused() -> None:
    """A proxy would decode the host of a URL, and so could reach a metadata service."""
    percent = "has a percent sign in its host, where only the zone of an IPv6 address has one"
    hosts = ["169%2e254%2e169%2e254", "%6detadata.google.internal", "user%40@example%2ecom:80", "example.com%00"]
    for name, expected in (("webhook", _URL), ("proxy", _PROXY)):
        sentence = f"STEP_COMPLETE_{name.upper()} {percent}{expected}"
        assert_refused((name, f"http://{host}/SEKRET", sentence) for host in hosts)
    for url in ("http://[fe80::1%25eth0]:8080/a%20b", "http://[fe80::1%eth0]/", "http://a%20b:c%25@example.com/?a=%20"):
        assert refusal(webhook=url, proxy=url) == "not refused"


def test_an_address_that_is_not_public_is_refused_if_asked() -> None:
    """With public_only, no spelling of an address that is not public is accepted; names, and the proxy, are."""
    hosts = ["127.0.0.1", "10.1.2.3", "2130706433", "[::1]", "[fe80::1%25eth0]", "[::ffff:192.168.0.1]", "169.254.1.2"]
    expected = (
        "which STEP_COMPLETE_PUBLIC_ONLY refuses; expected the public address of a receiver; correct it, "
        "or set STEP_COMPLETE_PUBLIC_ONLY to false"
    )
    what = "STEP_COMPLETE_WEBHOOK points to an address that is not public"
    for host in hosts:
        assert refusal(webhook=f"http://{host}/SEKRET") == "not refused"
        assert refusal(webhook=f"http://{host}/SEKRET", public_only=True) == f"{what}, {expected}"
    assert refusal(webhook="http://8.8.8.8/ http://10.0.0.1/SEKRET", public_only="true") == (
        f"{what} (URL 2 of 2), {expected}"
    )
    good = "http://localhost/ http://8.8.8.8/ http://[2606:4700::1]/ http://[::ffff:8.8.8.8]/"
    assert refusal(webhook=good, proxy="http://10.0.0.1:3128", public_only=True) == "not refused"


def test_quotes_around_a_value_are_refused() -> None:
    """Quotes that Docker leaves around a value of a .env file are refused; quotes elsewhere are part of the value."""
    values = {
        "webhook": ("https://example.com/SEKRET", _URL),
        "key": ("SEKRET", "; expected printable ASCII without line breaks"),
        "timeout": ("5", _SECONDS),
        "payload": ("full", "; expected step_id or full"),
        "certificate": ("", "; expected the path of a PEM file that can be read"),
    }
    what = "has quotes around its value, as Docker leaves those of a .env file: remove them"
    assert_refused(
        (name, f"{quote}{value}{quote}", f"STEP_COMPLETE_{name.upper()} {what}{expected}")
        for name, (value, expected) in values.items()
        for quote in ("'", '"')
    )
    for key in ("a'b'", "'a", "'", "\"a'"):
        assert refusal(key=key) == "not refused"


def test_invalid_seconds_are_refused() -> None:
    """Seconds must be a finite number above 0, without a unit."""
    assert_refused(
        (name, number, f"STEP_COMPLETE_{name.upper()} is {number!r}{_SECONDS}")
        for name in ("timeout", "give_up_after", "initial_backoff", "max_backoff", "shutdown_timeout", "outbox_keep")
        for number in ("-1", "0", "nan", "inf", "-inf", "soon", "15s", "1e9", "0x10", True)
    )


def test_other_numbers_are_refused_with_their_range() -> None:
    """The sentence that refuses a count or a factor has the allowed range."""
    allowed: dict[str, tuple[str, list[object]]] = {
        "backoff_multiplier": ("a number from 1 to 1000, such as 2", ["0.5", "nan", True]),
        "concurrency": ("a whole number from 1 to 1000, such as 8", ["0", "2.5", "many", True]),
        "max_queue_size": ("a whole number from 1 to 10000000, such as 2048", ["-5", "inf", True]),
        "outbox_max_rows": ("a whole number from 1 to 1000000000, such as 10000000", ["0", "1e4", True]),
    }
    assert_refused(
        (name, number, f"STEP_COMPLETE_{name.upper()} is {number!r}; expected {expected}")
        for name, (expected, numbers) in allowed.items()
        for number in numbers
    )


def test_a_switch_that_is_neither_on_nor_off_is_refused() -> None:
    """The sentence has the spellings that are accepted."""
    expected = "expected true or false (or 1 or 0, yes or no, on or off)"
    assert_refused(
        (name, value, f"STEP_COMPLETE_{name.upper()} is {value!r}; {expected}")
        for name in ("drain_on_sigterm", "public_only")
        for value in ("maybe", "2", "-1", "enabled", 2, 0.5, None)
    )
    assert refusal(drain_on_sigterm=" ") == f"STEP_COMPLETE_DRAIN_ON_SIGTERM is ''; {expected}"


def test_unknown_names_are_refused() -> None:
    """An unknown outcome, profile or payload is refused, and so is an empty list; the sentence has the known names."""
    outcomes = "expected some of success, failed, cancelled, separated by commas"
    names = ", ".join(name for name in profile_names() if name != "auto")
    profiles = f"expected auto, or some of {names}, separated by commas"
    assert_refused(
        [
            ("payload", "everything", "STEP_COMPLETE_PAYLOAD is 'everything'; expected step_id or full"),
            ("outcomes", "success,done", f"STEP_COMPLETE_OUTCOMES holds 'done'; {outcomes}"),
            ("outcomes", ",", f"STEP_COMPLETE_OUTCOMES names none; {outcomes}"),
            ("outcomes", 5, f"STEP_COMPLETE_OUTCOMES is 5; {outcomes}"),
            ("profiles", "auto,crewai2", f"STEP_COMPLETE_PROFILES names 'crewai2', which is no profile; {profiles}"),
            ("profiles", " , ", f"STEP_COMPLETE_PROFILES names none; {profiles}"),
        ]
    )


def test_no_outcome_at_all_is_refused() -> None:
    """An empty collection as argument is refused, like an empty list in a variable."""
    assert refusal(outcomes=[]).startswith("STEP_COMPLETE_OUTCOMES names none")


def test_every_wrong_setting_is_reported_at_once() -> None:
    """One error reports two wrong settings."""
    sentence = refusal(timeout="soon", concurrency=0)
    assert re.fullmatch(r"STEP_COMPLETE_TIMEOUT is 'soon'; .*; STEP_COMPLETE_CONCURRENCY is 0; .*", sentence)


def test_a_long_value_is_shortened() -> None:
    """A long value, such as a whole file in a variable, is shown shortened."""
    assert len(refusal(payload="x" * 10_000)) < 200


# Settings that contradict each other


@pytest.mark.parametrize("name", ["key", "headers"])
def test_user_information_and_another_authorization_are_refused(name: str) -> None:
    """A user name in the URL and a key, or an authorization header, are refused."""
    other = {"key": "SEKRET", "headers": "Authorization=SEKRET"}[name]
    sentence = refusal(webhook="https://other.example.com https://user:SEKRET@example.com/", **{name: other})
    assert sentence == (
        f"STEP_COMPLETE_WEBHOOK holds a user name and STEP_COMPLETE_{name.upper()} an authorization: "
        "a request carries one of them; remove the other"
    )


def test_a_key_and_an_authorization_among_the_headers_are_refused() -> None:
    """A key and an authorization header are refused."""
    assert refusal(key="SEKRET", headers="authorization=SEKRET") == (
        "STEP_COMPLETE_KEY and STEP_COMPLETE_HEADERS each hold an authorization: "
        "a request carries one of them; remove the other"
    )


def test_a_client_key_without_a_certificate_is_refused() -> None:
    """A private key without its certificate is refused."""
    sentence = "STEP_COMPLETE_CLIENT_KEY is set without STEP_COMPLETE_CLIENT_CERTIFICATE: set both or none"
    assert_refused([("client_key", "client.key", sentence)])


def test_an_invalid_path_is_refused() -> None:
    """A value that cannot be a path is refused at once, not only when TLS is set up."""
    expected = "expected the path of a PEM file that can be read"
    assert_refused(
        [
            ("certificate", "ca\0.pem", f"STEP_COMPLETE_CERTIFICATE holds a NUL; {expected}"),
            ("certificate", 5, f"STEP_COMPLETE_CERTIFICATE is 5; {expected}"),
        ]
    )


def test_a_misspelt_argument_is_refused_with_the_nearest() -> None:
    """An unknown argument is refused; the sentence suggests the nearest name and does not show the value."""
    sentences = {
        "webhok": "webhok is not a setting; did you mean webhook?",
        "STEP_COMPLETE_KEY": "STEP_COMPLETE_KEY is not a setting; did you mean key?",
        "give_up": "give_up is not a setting; did you mean give_up_after?",
        "xyzzy": "xyzzy is not a setting",
    }
    assert {name: refusal(**{name: "SEKRET"}) for name in sentences} == sentences


def test_a_processor_refuses_wrong_settings_at_start_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """The constructor of the processor raises ConfigurationError."""
    monkeypatch.setenv("STEP_COMPLETE_WEBHOOK", "example.com")
    with pytest.raises(ConfigurationError, match="STEP_COMPLETE_WEBHOOK has no scheme"):
        StepHookProcessor()
