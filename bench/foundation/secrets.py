"""Addresses as they may be shown: without what opens a door."""

from __future__ import annotations

import re
from urllib.parse import unquote

HIDDEN = "***"
TOKEN = 8  # characters from which a user without a password is taken for a token
HARMLESS = {"charset", "dbname", "driver", "host", "mode", "port", "sslmode", "timeout", "uri"}
# A password may hold "/" and "@", so all up to the last "@" counts as one; `sqlite:///a@b` has no user.
_USER = re.compile(r"(?<=://)[^\s/'\"][^\s'\"]*@")
_VALUE = re.compile(r"(?<=[?&])([\w.-]+)=([^&\s'\"#);,]+)")


def redacted(text: str, *addresses: str | None) -> str:
    """`text` without users, passwords and values of queries of any address in it.

    addresses: those in use, whose secrets are hidden wherever they stand, as libraries print parts of an address, too.
    """
    for address in filter(None, addresses):
        for secret in sorted(_secrets(address), key=len, reverse=True):
            text = text.replace(secret, HIDDEN)
    text = _USER.sub(f"{HIDDEN}@", text)
    return _VALUE.sub(lambda found: found[0] if found[1] in HARMLESS else f"{found[1]}={HIDDEN}", text)


def _secrets(address: str) -> set[str]:
    found = [value for name, value in re.findall(r"[?&]([\w.-]+)=([^&#]*)", address) if name not in HARMLESS]
    _, _, rest = address.partition("://")
    user, at, _ = rest.rpartition("@")
    if at and not rest.startswith("/"):
        name, colon, password = user.partition(":")
        found += [password] if colon else [name] * (len(name) >= TOKEN)
    return {form for value in found for form in (value, unquote(value)) if len(form) > 2}
