"""TLS and basic authentication by a web configuration file, in the form that Prometheus exporters
use (exporter-toolkit's `web-config.yml`); docs/web.md tells what of it is taken.

What is not taken is refused: nothing that somebody relies upon is silently left out.
"""

import ipaddress
import os
import re
import ssl
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

from reaper.core.text import printable
from reaper.web.passwords import load_bcrypt

_LONGEST_FILE: Final = 1024 * 1024
_TLS_VERSIONS: Final = {"TLS12": ssl.TLSVersion.TLSv1_2, "TLS13": ssl.TLSVersion.TLSv1_3}
_CLIENT_AUTH: Final = {
    "NoClientCert": ssl.CERT_NONE,
    "VerifyClientCertIfGiven": ssl.CERT_OPTIONAL,
    "RequireAndVerifyClientCert": ssl.CERT_REQUIRED,
}
_HEADERS: Final[Mapping[str, tuple[str, ...]]] = {
    "Content-Security-Policy": (),
    "Strict-Transport-Security": (),
    "X-Content-Type-Options": ("nosniff",),
    "X-Frame-Options": ("deny", "sameorigin"),
    "X-XSS-Protection": (),
}
"""Headers that may be set, and the values that each may have where not any."""
_BCRYPT: Final = re.compile(r"\$2[aby]\$(0[4-9]|[12]\d|3[01])\$[./A-Za-z0-9]{53}")


class WebConfigError(ValueError):
    """The file, or one that it names, is wrong; the message is for the person who wrote it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WebConfig:
    """What the file says, ready to use; the default is plain HTTP for everybody.

    `users` are bcrypt hashes by name, `headers` go on each answer, `allowed_names` are those of
    which a client's certificate must have one, None for any.
    """

    tls: ssl.SSLContext | None = None
    users: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    allowed_names: frozenset[str] | None = None

    def lets_in(self, certificate: Mapping[str, Any] | None) -> bool:
        """Tell whether a client's certificate (as ssl gives it, verified) has an allowed name."""
        if self.allowed_names is None or not certificate:
            return True
        pairs: Iterable[tuple[str, str]] = certificate.get("subjectAltName", ())
        return any(_plain_name(name) in self.allowed_names for _, name in pairs)


OPEN: Final = WebConfig()


class WebConfigFile:
    """A web configuration that follows its file, and the files of certificates that it names.

    A file that is broken when it is read again leaves all as it was and is told to `on_trouble`
    once. Thread-safe. Raises WebConfigError where the file is broken from the start.
    """

    def __init__(
        self,
        path: str,
        *,
        on_trouble: Callable[[str], None],
        on_news: Callable[[], None] = lambda: None,
    ) -> None:
        self._path = os.path.abspath(path)
        self._on_trouble = on_trouble
        self._on_news = on_news
        self._mutex = threading.Lock()
        # Each file's is taken before it is read, so that a change in between is met the next time.
        self._stamps: dict[str, object] = {}
        self._config = self._read()

    def current(self) -> WebConfig:
        """Return the latest that was right, having looked whether a file has changed."""
        with self._mutex:
            if any(_stamp(path) != stamp for path, stamp in self._stamps.items()):
                try:
                    self._config = self._read()
                except WebConfigError as error:
                    self._on_trouble(str(error))
                else:
                    self._on_news()
            return self._config

    def _read(self) -> WebConfig:
        self._stamps = {self._path: _stamp(self._path)}
        document = _mapping(_load(self._path), "the file", _TOP)
        tls = _mapping(document.get("tls_server_config"), "tls_server_config", _TLS)
        http = _mapping(document.get("http_server_config"), "http_server_config", _HTTP)
        if http.get("http2") not in {None, False}:
            raise WebConfigError("http_server_config: http2: not spoken here; leave it out")
        context, names = self._tls(tls)
        return WebConfig(
            tls=context,
            users=_users(document.get("basic_auth_users")),
            headers=_headers(http.get("headers")),
            allowed_names=names,
        )

    def _tls(
        self, section: Mapping[str, Any]
    ) -> tuple[ssl.SSLContext | None, frozenset[str] | None]:
        if not section:
            return None, None
        certificate, key, authority = (
            self._file(section, name) for name in ("cert_file", "key_file", "client_ca_file")
        )
        for path in (certificate, key, authority):
            if path is not None:
                self._stamps[path] = _stamp(path)
        if certificate is None or key is None:
            raise WebConfigError("tls_server_config: it needs cert_file and key_file")
        auth, names = _client_auth(section, authority)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = _one_of(section, "min_version", _TLS_VERSIONS, "TLS12")
        context.maximum_version = _one_of(section, "max_version", _TLS_VERSIONS, "TLS13")
        if context.minimum_version > context.maximum_version:
            raise WebConfigError("tls_server_config: min_version is above max_version")
        context.set_alpn_protocols(["http/1.1"])
        try:
            # An empty password, lest OpenSSL ask the terminal for one.
            context.load_cert_chain(certificate, key, password="")
        except (OSError, ValueError) as error:
            raise WebConfigError(
                f"cannot use {printable(certificate)} with {printable(key)}: {_why(error)}"
            ) from None
        if authority is not None:
            try:
                context.load_verify_locations(authority)
            except (OSError, ValueError) as error:
                raise WebConfigError(f"cannot use {printable(authority)}: {_why(error)}") from None
        context.verify_mode = auth
        return context, names

    def _file(self, section: Mapping[str, Any], name: str) -> str | None:
        value = section.get(name)
        if value is None or value == "":
            return None
        return os.path.join(os.path.dirname(self._path), _text(value, f"tls_server_config: {name}"))


_TOP: Final = ("tls_server_config", "http_server_config", "basic_auth_users")
_TLS: Final = (
    "cert_file",
    "key_file",
    "client_ca_file",
    "client_auth_type",
    "client_allowed_sans",
    "min_version",
    "max_version",
)
_HTTP: Final = ("http2", "headers")


def _client_auth(
    section: Mapping[str, Any], authority: str | None
) -> tuple[ssl.VerifyMode, frozenset[str] | None]:
    """Return whether clients need certificates, and which names."""
    auth: ssl.VerifyMode = _one_of(section, "client_auth_type", _CLIENT_AUTH, "NoClientCert")
    names = _names(section.get("client_allowed_sans"))
    if auth is not ssl.CERT_NONE and authority is None:
        raise WebConfigError("tls_server_config: client_auth_type needs a client_ca_file")
    if auth is ssl.CERT_NONE and (authority is not None or names is not None):
        raise WebConfigError(
            "tls_server_config: client_ca_file and client_allowed_sans need a client_auth_type, "
            "RequireAndVerifyClientCert as a rule"
        )
    return auth, names


def _stamp(path: str) -> object:
    try:
        it = os.stat(path)
    except OSError as error:
        return error.errno
    return it.st_dev, it.st_ino, it.st_size, it.st_mtime_ns, it.st_ctime_ns


def _why(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        return (error.reason or str(error)).replace("_", " ").lower()
    return getattr(error, "strerror", None) or str(error)


def _load(path: str) -> object:
    import yaml  # noqa: PLC0415  # only where there is a web configuration

    class Loader(yaml.SafeLoader):
        """YAML lets a key stand twice, and takes the last; here that is a mistake."""

        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            keys = [self.construct_object(key, deep=deep) for key, _ in node.value]
            for key in keys:
                if keys.count(key) > 1:
                    raise WebConfigError(f"{printable(str(key))} is given twice")
            return super().construct_mapping(node, deep)

    try:
        with open(path, "rb") as file:
            data = file.read(_LONGEST_FILE + 1)
        if len(data) > _LONGEST_FILE:
            raise WebConfigError(f"it is larger than {_LONGEST_FILE} bytes")
        return yaml.load(data, Loader)  # noqa: S506  # a SafeLoader
    except OSError as error:
        raise WebConfigError(f"cannot read it: {error.strerror}") from None
    except yaml.YAMLError as error:
        raise WebConfigError(f"it is no YAML: {printable(str(error))}") from None
    except (RecursionError, ValueError, TypeError) as error:
        if isinstance(error, WebConfigError):
            raise
        raise WebConfigError(f"it is no YAML that is understood: {error}") from None


def _mapping(value: object, where: str, known: Iterable[str] | None) -> dict[str, Any]:
    """Return a section; an empty one where it is not there or blank."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise WebConfigError(f"{where}: a mapping of keys and values is wanted")
    for key in value:
        if not isinstance(key, str):
            raise WebConfigError(f"{where}: write {printable(str(key))} in quotes")
        if known is not None and key not in known:
            raise WebConfigError(
                f"{where}: {printable(key)} is not supported; known are {', '.join(known)}"
            )
    return value


def _text(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise WebConfigError(f"{where}: text is wanted; write it in quotes")
    return value


def _one_of(section: Mapping[str, Any], name: str, known: Mapping[str, Any], default: str) -> Any:  # noqa: ANN401  # what the mapping holds
    value = _text(section.get(name) or default, f"tls_server_config: {name}")
    if value not in known:
        raise WebConfigError(
            f"tls_server_config: {name}: {printable(value)} is not supported; "
            f"known are {', '.join(known)}"
        )
    return known[value]


def _names(value: object) -> frozenset[str] | None:
    if value is None:
        return None
    if not isinstance(value, list):
        raise WebConfigError("tls_server_config: client_allowed_sans: a list is wanted")
    where = "tls_server_config: client_allowed_sans"
    return frozenset(_plain_name(_text(name, where)) for name in value)


def _plain_name(name: str) -> str:
    """Return the name; an address in the one way to write it."""
    with suppress(ValueError):
        return str(ipaddress.ip_address(name))
    return name


def _users(value: object) -> dict[str, str]:
    users = _mapping(value, "basic_auth_users", None)
    for user, hashed in users.items():
        where = f"basic_auth_users: {printable(user)}"
        if not _BCRYPT.fullmatch(_text(hashed, where)):
            raise WebConfigError(f"{where}: no bcrypt hash; `htpasswd -nB` makes one")
    if users:
        load_bcrypt()
    return users


def _headers(value: object) -> dict[str, str]:
    headers = _mapping(value, "http_server_config: headers", _HEADERS)
    for name, text in headers.items():
        where = f"http_server_config: headers: {name}"
        allowed = _HEADERS[name]
        if allowed and text not in allowed:
            raise WebConfigError(f"{where}: known are {', '.join(allowed)}")
        if not _text(text, where).isprintable() or not text.isascii():
            raise WebConfigError(f"{where}: plain ASCII on one line is wanted")
    return {name: text for name, text in headers.items() if text}
