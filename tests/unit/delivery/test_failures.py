"""What failures of a connection mean, in words for people."""

import pytest

from otel_step_hook.delivery.failures import meaning


@pytest.mark.parametrize(
    ("error_type", "detail", "text"),
    [
        ("ConnectionRefusedError", "", "refuses connections: nothing listens there"),
        ("gaierror", "", "cannot be resolved: no such name, or no name server that knows it"),
        ("MetadataAddressRefused", "", "leads to a cloud metadata service, which is refused"),
        (
            "PrivateAddressRefused",
            "",
            "leads to no public address, and STEP_COMPLETE_PUBLIC_ONLY refuses all others",
        ),
        ("SSLCertVerificationError", "", "has a certificate that is not accepted"),
        (
            "SSLCertVerificationError",
            "Hostname mismatch, certificate is not valid for 'a.test'.",
            "has a certificate for another name: Hostname mismatch, certificate is not valid for 'a.test'",
        ),
        (
            "SSLCertVerificationError",
            "certificate has expired",
            "has a certificate that is not trusted, certificate has expired; see STEP_COMPLETE_CERTIFICATE",
        ),
        ("SSLError", "", "fails to start TLS; does the endpoint speak https, not http?"),
        (
            "SSLError",
            "WRONG_VERSION_NUMBER",
            "fails to start TLS, WRONG_VERSION_NUMBER; does the endpoint speak https, not http?",
        ),
        (
            "SSLError",
            "TLSV13_ALERT_CERTIFICATE_REQUIRED",
            (
                "refuses our certificate, or that we have none, TLSV13_ALERT_CERTIFICATE_REQUIRED; "
                "see STEP_COMPLETE_CLIENT_CERTIFICATE"
            ),
        ),
        ("LookupError", "", ""),
    ],
)
def test_what_a_failure_means(error_type: str, detail: str, text: str) -> None:
    """Log lines and `check` say it in the same words."""
    assert meaning(error_type, detail) == text
