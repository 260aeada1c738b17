"""Why no connection came about."""

import socket
import ssl


def why(error: Exception) -> str:
    """What to add to "cannot be reached": words of ours, since the error's may hold the address."""
    match error:
        case ConnectionRefusedError():
            return ": the connection was refused"
        case socket.gaierror():
            return ": its name is not known"
        case ssl.SSLCertVerificationError() | ssl.CertificateError():
            return ": its certificate is not trusted"
        case ssl.SSLError():
            return ": no TLS connection could be made"
        case _:
            return ""
