"""How a URL is shown in spans and log lines."""

import pytest
from delivering import DELIVERED, NewRig, Script, event
from hypothesis import given
from hypothesis import strategies as st

from otel_step_hook.delivery.telemetry import shown_url

HOST = "https://receiver.test"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        (HOST, HOST),
        (f"{HOST}/", f"{HOST}/"),
        ("http://[::1]:8080/", "http://[::1]:8080/"),
        ("https://user:pass@receiver.test:8443/", f"{HOST}:8443/"),
        ("https://a%40b:c%2Fd@receiver.test", HOST),
        (f"{HOST}/#fragment", f"{HOST}/"),
        (f"{HOST}//", f"{HOST}/"),
        (f"{HOST}/hook", f"{HOST}/REDACTED"),
        (f"{HOST}/?token=abc", f"{HOST}/REDACTED"),
        (f"{HOST}?token=abc", f"{HOST}/REDACTED"),
        ("https://hooks.slack.com/services/T024BE7LD/B024BE7LD/XXXX", "https://hooks.slack.com/REDACTED"),
        ("https://hook.eu1.make.com/AaaAaaAaaAaaAaaAaa00", "https://hook.eu1.make.com/REDACTED"),
    ],
)
def test_a_url_is_shown_by_its_host(url: str, shown: str) -> None:
    """Scheme, host and port are shown; the rest may be a secret, and is not."""
    assert shown_url(url) == shown


_text = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x17F, exclude_characters="/?#@[]\\"), min_size=1)


@given(user=_text, path=st.lists(_text, min_size=1), query=_text | st.none(), fragment=_text | st.none())
def test_nothing_of_a_url_but_its_host_is_shown(
    user: str, path: list[str], query: str | None, fragment: str | None
) -> None:
    """No user information, path, query or fragment is shown, however it looks."""
    rest = "/".join(path) + f"?{query}" * (query is not None) + f"#{fragment}" * (fragment is not None)
    assert shown_url(f"https://{user}@receiver.test:8443/{rest}") == f"{HOST}:8443/REDACTED"


def test_a_zone_is_part_of_the_servers_address(rigged: NewRig) -> None:
    """The zone of a link-local address stands behind a plain percent sign, as in RFC 4007, where it is no URL."""
    rig = rigged(Script(DELIVERED), webhook="http://[fe80::1%25eth0]:8080/")
    rig.deliver(event())
    for span in rig.exporter.get_finished_spans():
        assert (span.attributes or {})["server.address"] == "fe80::1%eth0"
