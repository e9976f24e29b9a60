"""``durable token``: made, listed, refused; the secret is shown once."""

from __future__ import annotations

from pydantic import BaseModel, RootModel

from durable import Engine, Scope, Token
from durable.cli.tokens import MadeToken, ShownToken
from tests.cli.command import Command
from tests.cli.flows import run


async def found(url: str, secret: str) -> Token | None:
    async with Engine(url).client() as client:
        return await client.find_token(secret)


def test_a_token_is_made_for_a_script_listed_without_its_secret_and_revoked(durable: Command) -> None:
    answer = durable("token", "create", "billing", "--scope", "read", "--scope", "trigger", "--expires", "90d")
    secret = answer.out.removesuffix("\n")
    assert secret.startswith("durable_")
    assert "\n" not in secret, "the secret alone, so that TOKEN=$(durable token create …) works"
    assert "may read, trigger until" in answer.err
    token = run(found(durable.url, secret))
    assert token is not None
    assert token.scopes == {Scope.READ, Scope.TRIGGER}

    listed = durable("token", "list")
    assert "billing" in listed.out
    assert "read, trigger" in listed.out
    assert secret not in listed.out
    assert secret not in durable("token", "list", "--json").out

    assert durable("token", "revoke", "billing").out == "Token 'billing' is revoked.\n"
    assert run(found(durable.url, secret)) is None
    assert durable("token", "list").err == "There is no token.\n"
    assert "no token 'billing'" in durable("token", "revoke", "billing", code=1).err


def test_json_has_the_documented_shapes(durable: Command) -> None:
    made = durable("token", "create", "ops", "-s", "admin", "--json").json(MadeToken)
    assert made["scopes"] == ["admin"]
    assert made["expires_at"] is None
    shape: type[BaseModel] = RootModel[list[ShownToken]]
    assert [token["name"] for token in durable("token", "list", "--json").json(shape)] == ["ops"]


def test_misuse_is_told(durable: Command) -> None:
    assert "--scope" in durable("token", "create", "ops", code=2).err
    assert "read:payload" in durable("token", "create", "ops", "--scope", "root", code=2).err
    assert "is no duration" in durable("token", "create", "ops", "-s", "read", "--expires", "soon", code=2).err
    assert "in the future" in durable("token", "create", "ops", "-s", "read", "--expires", "0", code=1).err
    durable("token", "create", "ops", "-s", "read")
    assert "already" in durable("token", "create", "ops", "-s", "read", code=1).err
