"""No password or token of an address is ever shown."""

from __future__ import annotations

import pytest

from bench.foundation.secrets import redacted


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("http://tracker:5000", "http://tracker:5000"),
        ("sqlite:////home/a@b/x?mode=rw/mlflow.db", "sqlite:////home/a@b/x?mode=rw/mlflow.db"),
        ("https://me:secret@host/path", "https://***@host/path"),
        ("https://me:se/cr@et@host:5000", "https://***@host:5000"),
        ("https://ghp_secret@host", "https://***@host"),
        ("postgresql+psycopg2://u:secret@/db?host=/run&sslmode=require", "postgresql+psycopg2://***@/db?host=/run&sslmode=require"),
        ("http://host/?token=secret&user=secret#x", "http://host/?token=***&user=***#x"),
        ("mysql://host/db?ssl_key=a/b%2Fsecret", "mysql://host/db?ssl_key=***"),
    ],
)  # fmt: skip
def test_an_address_is_shown_without_what_opens_a_door(address: str, shown: str) -> None:
    assert redacted(address) == shown
    assert redacted(f"MLflow: {address}; fix: x", address) == f"MLflow: {shown}; fix: x"


def test_parts_of_an_address_in_a_message_are_hidden_too() -> None:
    address = "https://me:se%2Fcret@host/?token=tok%3Den"
    message = "refused: user me, password 'se/cret' (se%2Fcret), url: /?token=tok=en, header tok%3Den"
    assert redacted(message, address) == "refused: user me, password '***' (***), url: /?token=***, header ***"
    assert redacted(message, None) == message.replace("?token=tok=en,", "?token=***,")
