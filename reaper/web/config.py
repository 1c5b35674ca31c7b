"""TLS and basic authentication by a web configuration file, in the form that Prometheus exporters
use (exporter-toolkit's `web-config.yml`). See docs/web.md for the supported subset.

Unsupported keys are errors, so no setting is silently ignored.
"""

import ipaddress
import os
import re
import ssl
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final, Literal, get_args

import msgspec

from reaper.core.text import printable
from reaper.web.passwords import load_bcrypt

_MAX_FILE_BYTES: Final = 1024 * 1024
_TLS_VERSIONS: Final = {"TLS12": ssl.TLSVersion.TLSv1_2, "TLS13": ssl.TLSVersion.TLSv1_3}
_CLIENT_AUTH: Final = {
    "NoClientCert": ssl.CERT_NONE,
    "VerifyClientCertIfGiven": ssl.CERT_OPTIONAL,
    "RequireAndVerifyClientCert": ssl.CERT_REQUIRED,
}
_BCRYPT: Final = re.compile(r"\$2[aby]\$(0[4-9]|[12]\d|3[01])\$[./A-Za-z0-9]{53}")


class _Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A mapping in the file. An empty string means that the key is missing."""


class _Tls(_Section, frozen=True):
    cert_file: str = ""
    key_file: str = ""
    client_ca_file: str = ""
    client_auth_type: Literal[
        "NoClientCert", "VerifyClientCertIfGiven", "RequireAndVerifyClientCert"
    ] = "NoClientCert"
    client_allowed_sans: list[str] | None = None
    min_version: Literal["TLS12", "TLS13"] = "TLS12"
    max_version: Literal["TLS12", "TLS13"] = "TLS13"


class _Headers(
    _Section,
    frozen=True,
    rename={
        "csp": "Content-Security-Policy",
        "hsts": "Strict-Transport-Security",
        "content_type_options": "X-Content-Type-Options",
        "frame_options": "X-Frame-Options",
        "xss_protection": "X-XSS-Protection",
    },
):
    csp: str = ""
    hsts: str = ""
    content_type_options: Literal["", "nosniff"] = ""
    frame_options: Literal["", "deny", "sameorigin"] = ""
    xss_protection: str = ""


class _Http(_Section, frozen=True):
    http2: bool = False
    headers: _Headers = _Headers()


class _File(_Section, frozen=True):
    tls_server_config: _Tls = _Tls()
    http_server_config: _Http = _Http()
    basic_auth_users: dict[Any, Any] = {}


_SECTIONS: Final[Mapping[str, type[_Section]]] = {
    "": _File,
    "tls_server_config": _Tls,
    "http_server_config": _Http,
    "http_server_config.headers": _Headers,
}
_TYPE_ERRORS: Final = {
    "object": "must be a mapping of keys and values",
    "array": "must be a list",
    "str": "must be text; write it in quotes",
    "bool": "must be true or false",
}
"""Messages, by the type that msgspec expects."""
_UNSUPPORTED: Final = re.compile(
    r"(?:Object contains unknown field `|Invalid enum value ')(.*)[`']", re.DOTALL
)
_EXPECTED: Final = re.compile(r"Expected `(\w+)")
_PLACE: Final = re.compile(r" - at (?P<key>`key` in )?`\$\.?(?P<path>[^`]*)`\Z")


class WebConfigError(ValueError):
    """The file, or a file that it names, is wrong. The message is for the author of the file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WebConfig:
    """The content of the file, ready to use. The default is plain HTTP without authentication.

    `users` are bcrypt hashes by name. `headers` are added to each answer. A client's certificate
    must have one of the `allowed_names`; None allows any name.
    """

    tls: ssl.SSLContext | None = None
    users: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    allowed_names: frozenset[str] | None = None

    def accepts_certificate(self, certificate: Mapping[str, Any] | None) -> bool:
        """Return whether a client's verified certificate, from ssl, has an allowed name."""
        if self.allowed_names is None or not certificate:
            return True
        pairs: Iterable[tuple[str, str]] = certificate.get("subjectAltName", ())
        return any(_plain_name(name) in self.allowed_names for _, name in pairs)


OPEN: Final = WebConfig()


class WebConfigFile:
    """A web configuration that is read again when its file or a certificate file changes.

    If a changed file is broken, the old configuration stays, and `on_trouble` is called once.
    Thread-safe. Raises WebConfigError if the file is broken at the start.
    """

    def __init__(
        self,
        path: str,
        *,
        on_trouble: Callable[[str], None],
        on_reload: Callable[[], None] = lambda: None,
    ) -> None:
        self._path = os.path.abspath(path)
        self._on_trouble = on_trouble
        self._on_reload = on_reload
        self._mutex = threading.Lock()
        # Each file's stamp is taken before it is read, so a change in between is noticed next time.
        self._stamps: dict[str, object] = {}
        self._config = self._read()

    def current(self) -> WebConfig:
        """Return the latest correct configuration, after checking whether a file has changed."""
        with self._mutex:
            if any(_stamp(path) != stamp for path, stamp in self._stamps.items()):
                try:
                    self._config = self._read()
                except WebConfigError as error:
                    self._on_trouble(str(error))
                else:
                    self._on_reload()
            return self._config

    def _read(self) -> WebConfig:
        self._stamps = {self._path: _stamp(self._path)}
        file = _structure(_load(self._path))
        if file.http_server_config.http2:
            raise WebConfigError("http_server_config: http2: not supported; remove it")
        context, names = self._tls(file.tls_server_config)
        return WebConfig(
            tls=context,
            users=_users(file.basic_auth_users),
            headers=_headers(file.http_server_config.headers),
            allowed_names=names,
        )

    def _tls(self, section: _Tls) -> tuple[ssl.SSLContext | None, frozenset[str] | None]:
        if section == _Tls():
            return None, None
        certificate = self._resolve(section.cert_file)
        key = self._resolve(section.key_file)
        authority = self._resolve(section.client_ca_file)
        for path in (certificate, key, authority):
            if path is not None:
                self._stamps[path] = _stamp(path)
        if certificate is None or key is None:
            raise WebConfigError("tls_server_config: cert_file and key_file are required")
        auth, names = _client_auth(section)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = _TLS_VERSIONS[section.min_version]
        context.maximum_version = _TLS_VERSIONS[section.max_version]
        if context.minimum_version > context.maximum_version:
            raise WebConfigError("tls_server_config: min_version is above max_version")
        context.set_alpn_protocols(["http/1.1"])
        try:
            # An empty password, so that OpenSSL does not ask the terminal for one.
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

    def _resolve(self, path: str) -> str | None:
        """Return the path, relative to the configuration file; None for an empty path."""
        return os.path.join(os.path.dirname(self._path), path) if path else None


def _client_auth(section: _Tls) -> tuple[ssl.VerifyMode, frozenset[str] | None]:
    """Return whether clients need certificates, and which names are allowed."""
    auth = _CLIENT_AUTH[section.client_auth_type]
    allowed = section.client_allowed_sans
    if auth is not ssl.CERT_NONE and not section.client_ca_file:
        raise WebConfigError("tls_server_config: client_auth_type needs a client_ca_file")
    if auth is ssl.CERT_NONE and (section.client_ca_file or allowed is not None):
        raise WebConfigError(
            "tls_server_config: client_ca_file and client_allowed_sans need a client_auth_type, "
            "usually RequireAndVerifyClientCert"
        )
    return auth, None if allowed is None else frozenset(map(_plain_name, allowed))


def _stamp(path: str) -> object:
    try:
        stat = os.stat(path)
    except OSError as error:
        return error.errno
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def _why(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        return (error.reason or str(error)).replace("_", " ").lower()
    return getattr(error, "strerror", None) or str(error)


def _load(path: str) -> object:
    import yaml  # noqa: PLC0415  # only if there is a web configuration

    class Loader(yaml.SafeLoader):
        """A loader that rejects duplicate keys. YAML allows them and uses the last one."""

        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            keys = [self.construct_object(key, deep=deep) for key, _ in node.value]
            for key in keys:
                if keys.count(key) > 1:
                    raise WebConfigError(f"{printable(str(key))} occurs twice")
            return super().construct_mapping(node, deep)

    try:
        with open(path, "rb") as file:
            data = file.read(_MAX_FILE_BYTES + 1)
        if len(data) > _MAX_FILE_BYTES:
            raise WebConfigError(f"it is larger than {_MAX_FILE_BYTES} bytes")
        return yaml.load(data, Loader)  # noqa: S506  # a SafeLoader
    except OSError as error:
        raise WebConfigError(f"cannot read it: {error.strerror}") from None
    except yaml.YAMLError as error:
        raise WebConfigError(f"invalid YAML: {printable(str(error))}") from None
    except (RecursionError, ValueError, TypeError) as error:
        if isinstance(error, WebConfigError):
            raise
        raise WebConfigError(f"unsupported YAML: {error}") from None


def _structure(document: object) -> _File:
    if document is None:
        return _File()
    if isinstance(document, dict):
        document = {
            # A user without a password is an error, not a missing user.
            key: value if key == "basic_auth_users" else _without_blanks(value)
            for key, value in document.items()
            if value is not None
        }
    try:
        return msgspec.convert(document, _File)
    except msgspec.ValidationError as error:
        raise WebConfigError(_explain(str(error))) from None


def _without_blanks(value: object) -> object:
    """Return the value without keys that have no value."""
    if not isinstance(value, dict):
        return value
    return {key: _without_blanks(inner) for key, inner in value.items() if inner not in (None, "")}


def _explain(error: str) -> str:
    """Return msgspec's "WHAT - at `$.PATH`" as "PATH: what is wrong", with the supported values."""
    place = _PLACE.search(error)
    path = place["path"] if place else ""
    where = path.replace(".", ": ") or "the file"
    what = error[: place.start()] if place else error
    if place and place["key"]:
        return f"{where}: write each key in quotes"
    unsupported = _UNSUPPORTED.fullmatch(what)
    if unsupported:
        known = ", ".join(filter(None, _supported(path)))
        return f"{where}: {printable(unsupported[1])} is not supported; use one of {known}"
    expected = _EXPECTED.match(what)
    return f"{where}: {_TYPE_ERRORS.get(expected[1], what) if expected else what}"


def _supported(path: str) -> Iterable[str]:
    """Return the keys of a section, or the values of a setting."""
    if path in _SECTIONS:
        return (field.encode_name for field in msgspec.structs.fields(_SECTIONS[path]))
    section, _, name = path.rpartition(".")
    types = {field.encode_name: field.type for field in msgspec.structs.fields(_SECTIONS[section])}
    return get_args(types[name])


def _plain_name(name: str) -> str:
    """Return the name; an IP address in its canonical form."""
    with suppress(ValueError):
        return str(ipaddress.ip_address(name))
    return name


def _users(users: dict[Any, Any]) -> dict[str, str]:
    for user, hashed in users.items():
        if not isinstance(user, str):
            raise WebConfigError(f"basic_auth_users: write {printable(str(user))} in quotes")
        where = f"basic_auth_users: {printable(user)}"
        if not isinstance(hashed, str):
            raise WebConfigError(f"{where}: {_TYPE_ERRORS['str']}")
        if not _BCRYPT.fullmatch(hashed):
            raise WebConfigError(f"{where}: not a bcrypt hash; `htpasswd -nB` makes one")
    if users:
        load_bcrypt()
    return users


def _headers(section: _Headers) -> dict[str, str]:
    headers: dict[str, str] = msgspec.to_builtins(section)
    for name, value in headers.items():
        if not (value.isprintable() and value.isascii()):
            where = f"http_server_config: headers: {name}"
            raise WebConfigError(f"{where}: must be printable ASCII")
    return {name: value.strip() for name, value in headers.items() if value.strip()}
