"""Wrong settings of several receivers: each is refused with a sentence that names file, endpoint and setting."""

from pathlib import Path

import pytest
from refusals import assert_refused, refusal

from otel_step_hook import ConfigurationError, EndpointSettings, StepHookProcessor, StepHookSettings

_SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"  # from the tests of the Standard Webhooks libraries
_EXPECTED = "; expected the path of a TOML file with an [[endpoint]] for each receiver"
_A = '[[endpoint]]\nname = "a"\nwebhook = "http://a/SEKRET"\n'


@pytest.fixture(autouse=True)
def _working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def _refused(text: str | bytes) -> str:
    """The sentence that refuses a file with *text*: the same for an argument and for the variable."""
    Path("steps.toml").write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("STEP_COMPLETE_ENDPOINTS", "steps.toml")
        by_variable = refusal()
    assert by_variable == refusal(endpoints="steps.toml")
    return by_variable


def _assert_refused(cases: dict[str, str]) -> None:
    got = {text: _refused(text) for text in cases}
    wrong = [f"{text!r}: {sentence}" for text, sentence in got.items() if sentence != cases[text]]
    assert not wrong, "\n".join(wrong)


def test_a_file_that_cannot_be_read_is_refused() -> None:
    """The sentence has the path and the system's description of the error."""
    named = "STEP_COMPLETE_ENDPOINTS names"
    Path("folder").mkdir()
    assert refusal(endpoints="none.toml") == (
        f"{named} none.toml, which cannot be read (No such file or directory){_EXPECTED}"
    )
    assert refusal(endpoints=Path("folder")) == f"{named} folder, which cannot be read (Is a directory){_EXPECTED}"
    assert refusal(endpoints="caf\udce9.toml") == (  # a byte that is not UTF-8, as `os.environ` has it
        f"{named} caf\\udce9.toml, which cannot be read (No such file or directory){_EXPECTED}"
    )
    assert refusal(endpoints="a\0b") == f"STEP_COMPLETE_ENDPOINTS holds a NUL{_EXPECTED}"


def test_a_value_that_is_no_path_is_refused_without_showing_it() -> None:
    """A URL, or the text of the file instead of its path, may hold secrets, and is not shown."""
    text = "STEP_COMPLETE_ENDPOINTS holds a URL or the text of a file"
    cases: list[tuple[object, str]] = [
        ("https://user:SEKRET@example.com/SEKRET", text),
        (Path("https://user:SEKRET@example.com/SEKRET"), text),  # its text has one slash after the scheme
        (_A, text),
        ('[[endpoint]] key="SEKRET"', text),
        ('key = "SEKRET"\rtimeout = 5', text),
        ('endpoint = [{webhook = "HTTP://SEKRET/"}]', text),
        ("SEKRET" * 1000, "STEP_COMPLETE_ENDPOINTS holds more than 4096 characters"),
    ]
    assert_refused([("endpoints", value, f"{sentence}{_EXPECTED}") for value, sentence in cases])


def test_a_file_that_is_no_toml_is_refused() -> None:
    """The sentence says where in the file the error is, and shows none of its text."""
    cases: dict[str | bytes, str] = {
        '[[endpoint]]\nkey = "SEKRET': " (at end of document)",
        "[[endpoint]]\nkey = SEKRET\n": " (at line 2, column 7)",
        b'key = "SEKRET\xff"': "",
        f"SEKRET = {'[' * 100_000}": "",
    }
    sentence = "STEP_COMPLETE_ENDPOINTS names steps.toml, which is no TOML"
    assert {text: _refused(text) for text in cases} == {
        text: f"{sentence}{place}{_EXPECTED}" for text, place in cases.items()
    }


def test_a_file_without_endpoints_is_refused() -> None:
    """A file without an [[endpoint]] is refused: with it, nothing would be sent."""
    none = "steps.toml: there is no [[endpoint]], in double brackets; expected one for each receiver"
    outside = "stands outside of an [[endpoint]]"
    only = "; expected nothing but an [[endpoint]] for each receiver"
    _assert_refused(
        {
            "": none,
            "# nothing\n": none,
            "endpoint = []": none,
            '[endpoint]\nwebhook = "http://a/SEKRET"': none,
            f'[[endpoints]]\nwebhook = "SEKRET"\n{_A}': (
                f"steps.toml: endpoints {outside}; did you mean endpoint?{only}"
            ),
            f'timeout = "SEKRET"\n{_A}': f"steps.toml: timeout {outside}{only}",
            'endpoint = ["SEKRET"]': ("steps.toml, endpoint 1: is of type str; expected the settings of one receiver"),
        }
    )


def test_a_wrong_setting_of_an_endpoint_is_refused() -> None:
    """The sentence names file, endpoint and setting; an endpoint without a name is given by its number."""
    url = "expected an absolute URL such as https://example.com/hook"
    seconds = "expected a number of seconds above 0 and up to 315360000 (ten years), such as 15"
    a = "steps.toml, endpoint 'a': "
    _assert_refused(
        {
            "[[endpoint]]": f"steps.toml, endpoint 1: webhook is not set; {url}",
            '[[endpoint]]\nname = "a"\nwebhook = " "': f"{a}webhook is not set; {url}",
            '[[endpoint]]\nname = "a"\nwebhook = "SEKRET"': f"{a}webhook has no scheme; {url}",
            f'{_A}[[endpoint]]\nwebhook = "http://b/ http://SEKRET/"': (
                f"steps.toml, endpoint 2: webhook holds a space, a backslash or a control character; {url}"
            ),
            f'{_A}timeout = "soon"': f"{a}timeout is 'soon'; {seconds}",
            f"{_A}timeout = true": f"{a}timeout is True; {seconds}",
            f"{_A}payload = 5": f"{a}payload is 5; expected step_id or full",
            f"{_A}outcomes = []": (
                f"{a}outcomes names none; expected some of success, failed, cancelled, separated by commas"
            ),
            f'{_A}key = "SEKRET\\nSEKRET"': (
                f"{a}key holds what HTTP cannot carry; expected printable ASCII without line breaks"
            ),
            f"""{_A}key = '"SEKRET"'""": (
                f"{a}key has quotes around its value, as Docker leaves those of a .env file: remove them; "
                "expected printable ASCII without line breaks"
            ),
            f'{_A}signing_secret = "{_SECRET} whsec_SEKRET"': (
                f"{a}signing_secret: secret 2 of 2 is not 'whsec_' followed by the base64 of 24 to 64 bytes; "
                "make one with: otel-step-hook secret"
            ),
            f"{_A}headers = {{ Host = 'SEKRET' }}": (
                f"{a}headers sets host, which every webhook has of its own; "
                "expected name=value,name=value, percent-encoded, of printable ASCII"
            ),
            f"{_A}certificate = 5": f"{a}certificate is 5; expected the path of a PEM file that can be read",
            f'{_A}webhok = "SEKRET"': f"{a}webhok is not a setting; did you mean webhook?",
            f'{_A}key_evn = "SEKRET"': f"{a}key_evn is not a setting; did you mean key_env?",
            f"{_A}concurrency = 5": f"{a}concurrency is not a setting",
            f'{_A}self = "SEKRET"': f"{a}self is not a setting",
        }
    )


def test_an_address_that_is_not_public_is_refused_at_the_endpoints_that_ask() -> None:
    """An endpoint may ask for a public address itself, or inherit that from all; it may also set it to false."""
    private = {"webhook": "http://10.0.0.1/SEKRET", "name": "a"}
    sentence = (
        "endpoint 'a': webhook points to an address that is not public, which {0} refuses; "
        "expected the public address of a receiver; correct it, or set {0} to false"
    )
    own = {**private, "public_only": True}
    assert refusal(endpoints=[own]) == f"STEP_COMPLETE_ENDPOINTS, {sentence.format('public_only')}"
    assert refusal(endpoints=[private], public_only=True) == sentence.format("STEP_COMPLETE_PUBLIC_ONLY")
    assert refusal(endpoints=[{**private, "public_only": False}], public_only=True) == "not refused"
    assert refusal(endpoints=[private]) == "not refused"
    assert refusal(endpoints=[{**private, "webhook": "http://8.8.8.8/"}], public_only=True) == "not refused"


def test_an_invalid_name_is_refused() -> None:
    """A name must be fit for an attribute of metrics."""
    expected = "expected 1 to 64 letters of ASCII, digits, '-', '_' and '.'"
    names = ["", "a b", "é", "a\nb", "x" * 65]
    sentences = [refusal(endpoints=[{"webhook": "http://a/SEKRET", "name": name}]) for name in names]
    start = "STEP_COMPLETE_ENDPOINTS, endpoint 1: name is"
    assert sentences[:-1] == [f"{start} {name!r}; {expected}" for name in names[:-1]]
    assert sentences[-1].startswith(f"{start} 'xxx")


def test_every_wrong_endpoint_is_reported_at_once() -> None:
    """One sentence reports the errors of all endpoints."""
    named = "STEP_COMPLETE_ENDPOINTS, endpoint 'a': payload is 5; expected step_id or full"
    numbered = "STEP_COMPLETE_ENDPOINTS, endpoint 3: is of type int; expected the settings of one receiver"
    good = EndpointSettings(webhook="http://b/")
    assert refusal(endpoints=[{"name": "a", "webhook": "http://a/", "payload": 5}, good, 5]) == f"{named}; {numbered}"


@pytest.mark.parametrize("value", [5, {"webhook": "http://SEKRET/"}, EndpointSettings(webhook="http://SEKRET/")])
def test_a_value_of_another_type_is_refused(value: object) -> None:
    """Anything but a path or a sequence, such as a single endpoint, is refused without showing it."""
    sentence = f"STEP_COMPLETE_ENDPOINTS is of type {type(value).__name__}{_EXPECTED}"
    assert refusal(endpoints=value) == sentence


def test_endpoints_of_one_name_are_refused() -> None:
    """Two endpoints with the same name, given or by default, are refused."""
    sentence = "STEP_COMPLETE_ENDPOINTS has several endpoints that are called {}; give each a name of its own"
    assert _refused(f"{_A}{_A}") == sentence.format("'a'")
    unnamed = EndpointSettings(webhook="http://a/SEKRET")
    as_user = EndpointSettings(webhook="http://u:SEKRET@a/SEKRET", payload="full", headers="x-a=SEKRET")
    named = EndpointSettings(webhook="http://b/", name=unnamed.display_name)
    for other in (unnamed, as_user, named):
        assert refusal(endpoints=[unnamed, other]) == sentence.format(repr(unnamed.display_name))


# Secrets in variables that the settings name


@pytest.mark.parametrize("setting", ["key", "signing_secret"])
def test_a_variable_that_holds_no_secret_is_refused(setting: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing or empty variable is refused; its name, which may be the secret itself, is not shown."""
    monkeypatch.setenv("EMPTY", "")
    secret = setting.replace("_", " ")
    sentence = (
        f"steps.toml, endpoint 'a': {setting}_env names no environment variable that is set; "
        f"expected the name of one that holds the {secret}; correct it, or set that variable"
    )
    _assert_refused({f"{_A}{setting}_env = {value}": sentence for value in ('"SEKRET"', '"EMPTY"', '""', "5")})


@pytest.mark.parametrize("setting", ["key", "signing_secret"])
def test_a_secret_and_its_variable_are_refused(setting: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A secret and the name of its variable must not both be set."""
    monkeypatch.setenv("A_SECRET", "SEKRET")
    text = f'{_A}{setting} = "SEKRET"\n{setting}_env = "A_SECRET"'
    assert _refused(text) == f"steps.toml, endpoint 'a': {setting} and {setting}_env are both set: remove one of them"


def test_the_secret_in_a_variable_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong secret in a variable is refused without showing it."""
    monkeypatch.setenv("A_SECRET", "SEKRET\x7f")
    assert _refused(f'{_A}key_env = "A_SECRET"').startswith(
        "steps.toml, endpoint 'a': key holds what HTTP cannot carry; "
    )
    assert _refused(f'{_A}signing_secret_env = "A_SECRET"').startswith(
        "steps.toml, endpoint 'a': signing_secret: secret 1 of 1 is not"
    )


# Settings that contradict each other


def test_two_authorizations_of_an_endpoint_are_refused() -> None:
    """An endpoint may have only one of key, authorization header, and user name in its URL."""
    one = "a request carries one of them; remove the other"
    _assert_refused(
        {
            f'{_A}key = "SEKRET"\nheaders = "authorization=SEKRET"': (
                f"steps.toml, endpoint 'a': key and headers each hold an authorization: {one}"
            ),
            '[[endpoint]]\nwebhook = "http://u:SEKRET@a/"\nkey = "SEKRET"': (
                f"steps.toml, endpoint 1: webhook holds a user name and key an authorization: {one}"
            ),
            '[[endpoint]]\nwebhook = "http://u:SEKRET@a/"\nheaders = "authorization=SEKRET"': (
                f"steps.toml, endpoint 1: webhook holds a user name and headers an authorization: {one}"
            ),
            f'{_A}client_key = "client.key"': (
                "steps.toml, endpoint 'a': client_key is set without client_certificate: set both or none"
            ),
        }
    )


def test_a_webhook_beside_endpoints_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A webhook beside endpoints is refused, whether it comes from an argument or from the environment."""
    sentence = (
        "STEP_COMPLETE_WEBHOOK and STEP_COMPLETE_ENDPOINTS are both set: remove one of them, "
        "or make the webhook an endpoint"
    )
    endpoints = [EndpointSettings(webhook="http://a/SEKRET")]
    assert refusal(webhook="http://b/SEKRET", endpoints=endpoints) == sentence
    monkeypatch.setenv("STEP_COMPLETE_WEBHOOK", "http://b/SEKRET")
    assert refusal(endpoints=endpoints) == sentence
    assert refusal(endpoints=endpoints, webhook=None) == "not refused"


@pytest.mark.parametrize(
    ("name", "value"), [("key", "SEKRET"), ("signing_secret", _SECRET), ("headers", "authorization=SEKRET")]
)
def test_a_secret_beside_endpoints_is_refused(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A secret that is set for all receivers is refused beside endpoints: no receiver may get that of another."""
    monkeypatch.setenv(f"STEP_COMPLETE_{name.upper()}", value)
    sentence = (
        f"STEP_COMPLETE_{name.upper()} is set beside STEP_COMPLETE_ENDPOINTS: what is a secret of one receiver "
        f"is sent to no other; give it to its endpoint, as {name}, or remove it here"
    )
    assert refusal(endpoints=[EndpointSettings(webhook="http://a/")]) == sentence
    other = {"key": "another", "signing_secret": f"{_SECRET} {_SECRET}", "headers": "x-a=1"}[name]
    assert refusal(endpoints=[EndpointSettings(webhook="http://a/", **{name: other})]) == sentence


# Endpoints in Python code


def test_an_endpoint_is_refused_where_it_is_made() -> None:
    """The constructor of a wrong endpoint raises; the sentence begins with the endpoint's name, if it has one."""
    with pytest.raises(ConfigurationError, match=r"^endpoint 'a': timeout is 'soon'; expected a number"):
        EndpointSettings(name="a", webhook="http://a/", timeout="soon")
    with pytest.raises(ConfigurationError, match=r"^webhook is not set; expected an absolute URL"):
        EndpointSettings()
    with pytest.raises(ConfigurationError, match=r"^endpoint 'a': url is not a setting$"):
        EndpointSettings(name="a", webhook="http://a/", url="http://a/")


def test_a_processor_refuses_wrong_endpoints_at_start_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """The constructor of the processor raises ConfigurationError."""
    monkeypatch.setenv("STEP_COMPLETE_ENDPOINTS", "none.toml")
    with pytest.raises(ConfigurationError, match=r"STEP_COMPLETE_ENDPOINTS names none\.toml, which cannot be read"):
        StepHookProcessor()
    assert StepHookSettings(endpoints=()).endpoints == ()
