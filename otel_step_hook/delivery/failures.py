"""What a failed connection means, in words for people: log lines and `otel-step-hook check` share them. Pure."""

_UNRESOLVED = "cannot be resolved: no such name, or no name server that knows it"
CLOSED = "closes the connection without an answer"
_BY_PROXY = "cannot be reached by way of the proxy, which refuses it; see STEP_COMPLETE_PROXY"
_MEANINGS = {
    "MetadataAddressRefused": "leads to a cloud metadata service, which is refused",
    "PrivateAddressRefused": "leads to no public address, and STEP_COMPLETE_PUBLIC_ONLY refuses all others",
    "gaierror": _UNRESOLVED,
    "UnicodeError": _UNRESOLVED,
    "UnicodeEncodeError": _UNRESOLVED,
    "ConnectionRefusedError": "refuses connections: nothing listens there",
    "ConnectionResetError": CLOSED,
    "BrokenPipeError": CLOSED,
    "ServerDisconnectedError": CLOSED,
    "RemoteProtocolError": f"{CLOSED}, or answers with something that is no HTTP",
    "ClientResponseError": "answers with something that is no HTTP",
    "ProxyError": _BY_PROXY,
    "ClientHttpProxyError": _BY_PROXY,
}
_TLS = frozenset({"SSLError", "SSLEOFError", "SSLZeroReturnError", "SSLSyscallError"})


def meaning(error_type: str, detail: str = "") -> str:
    """Return what *error_type* means, as the rest of a sentence about the receiver; empty for one without words.

    *error_type* is that of an `AttemptResult`. *detail* is what OpenSSL says of a failure of TLS.
    """
    if error_type == "SSLCertVerificationError":
        return _of_certificate(detail)
    if error_type not in _TLS:
        return _MEANINGS.get(error_type, "")
    if "CERTIFICATE" in detail:
        return f"refuses our certificate, or that we have none, {detail}; see STEP_COMPLETE_CLIENT_CERTIFICATE"
    return f"fails to start TLS{f', {detail}' if detail else ''}; does the endpoint speak https, not http?"


def _of_certificate(detail: str) -> str:
    if not detail:
        return "has a certificate that is not accepted"
    if "mismatch" in detail:
        return f"has a certificate for another name: {detail.rstrip('.')}"
    return f"has a certificate that is not trusted, {detail}; see STEP_COMPLETE_CERTIFICATE"
