"""Credentials: from the environment, or from Prefect's blocks in a real (temporary) server."""

import uuid

import pytest
from prefect.blocks.system import Secret
from prefect_server import await_server
from pydantic import SecretStr

from flows.configuration import ConfigurationError
from flows.credentials import resolve
from publish.destination import Credential
from publish.destinations.webhook import WebhookSettings


def webhook(**secret: str) -> WebhookSettings:
    return WebhookSettings(kind="webhook", url="https://crm.example", secret=Credential(**secret))


def test_a_credential_is_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CRM_SECRET", "whsec_abc")
    assert resolve("crm", webhook(env="CRM_SECRET")) == {"secret": "whsec_abc"}


@pytest.mark.parametrize("value", [None, ""])
def test_a_variable_that_is_not_set_is_named(monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
    monkeypatch.delenv("CRM_SECRET", raising=False)
    if value is not None:
        monkeypatch.setenv("CRM_SECRET", value)
    with pytest.raises(ConfigurationError, match=r"^destinations\.crm\.secret: .* CRM_SECRET is not set$"):
        resolve("crm", webhook(env="CRM_SECRET"))


def test_a_credential_is_read_from_a_block() -> None:
    await_server()
    name = f"crm-{uuid.uuid4().hex}"
    Secret(value=SecretStr("whsec_abc")).save(name)
    assert resolve("crm", webhook(block=name)) == {"secret": "whsec_abc"}


def test_a_block_that_is_not_there_is_named() -> None:
    await_server()
    with pytest.raises(ConfigurationError, match=r"\.secret: Prefect has no Secret block named no-such-block:"):
        resolve("crm", webhook(block="no-such-block"))
