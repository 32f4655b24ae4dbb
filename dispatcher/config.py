"""Settings: named, frozen, checked as a whole.

Sources, strongest first: arguments, ``DRIPLINE_…`` variables, ``dripline.toml``.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

from dispatcher.core.hosts import GatewayHosts
from dispatcher.errors import InputError

SETTINGS_FILE = "dripline.toml"
SECRET_CHARACTERS = 16


class Settings(BaseSettings):
    """Every setting of the engine, with its unit in its name. The defaults are those of ARCHITECTURE.md."""

    model_config = SettingsConfigDict(
        env_prefix="DRIPLINE_", frozen=True, extra="forbid", toml_file=SETTINGS_FILE, env_ignore_empty=True
    )

    database_url: str | None = Field(None, description="any libpq URL; without it the embedded server is used")
    data_dir: Path = Field(Path(".dripline"), description="where the embedded server keeps its data")
    ray_address: str | None = Field(None, description="an existing Ray cluster; without it a local one is started")

    log: Literal["auto", "text", "json"] = Field(
        "auto", description="form of the log; auto: text in a terminal, else json"
    )
    devices_per_shard: int = Field(300, ge=1, le=5000)
    hour_s: float = Field(3600.0, gt=0, description="length of an hour in delays and quotas; shorter only in tests")
    # A send window is open for at least 900 s: what may arrive so late would find none.
    deadline_s: float = Field(30.0, gt=0, lt=900, description="how long after its slot a message may still leave")
    skew_s: float = Field(5.0, ge=0, description="how far two clocks may differ")
    guard_s: float = Field(60.0, ge=0, description="how much longer than the limit's the quota windows are")
    lease_s: float = Field(300.0, gt=0, description="how long after its slot a claim may stay unanswered")
    trust_s: float = Field(14.0, gt=0, description="how long a shard trusts its epoch after renewing it")
    leader_s: float = Field(15.0, gt=0, description="lifetime of the coordinator's leadership")
    heartbeat_s: float = Field(5.0, gt=0, description="how often epochs and leadership are renewed")
    look_s: float = Field(1.0, gt=0, description="how often a shard looks for claims that no call brought")
    hear_s: float = Field(
        1.0, gt=0, description="how often shards are asked what has ended; up to 8 times more seldom at rest"
    )
    hung_s: float = Field(15.0, gt=0, description="a shard or coordinator silent for so long is replaced")
    horizon_s: float = Field(5.0, gt=0, description="how far ahead slots are offered in production")
    cycle_s: float = Field(30.0, gt=0, description="the coordinator wakes at latest after this long")
    claims_at_once: int = Field(8, ge=1, description="for how many shards is claimed side by side, at most")
    complete_rows: int = Field(5000, ge=1, description="outcomes completed in one transaction, at most")
    complete_wait_s: float = Field(0.2, ge=0, description="how long outcomes are gathered, at most")
    enrol_rows: int = Field(20_000, ge=1, description="lead changes enrolled in one transaction, about")
    bulk_rows: int = Field(50_000, ge=1, description="rows that one holding, moving or rescuing pass touches, at most")
    retry_limit: int = Field(4, ge=0, description="further attempts after a counted failure, then it fails")
    retry_base_s: float = Field(60.0, gt=0, description="backoff after the first counted failure")
    retry_cap_s: float = Field(21_600.0, gt=0, description="longest backoff")
    resend_limit: int = Field(5, ge=0, description="resends of an in-doubt attempt under the same key")
    breaker_failures: int = Field(5, ge=0, description="failures in a row that quarantine a device; 0: never")
    breaker_base_s: float = Field(30.0, gt=0, description="pause before one message may try a failing device")
    breaker_cap_s: float = Field(900.0, gt=0, description="longest such pause; each one is twice the one before")
    key_retention_s: float = Field(86_400.0, gt=0, description="how long gateways remember idempotency keys")
    webhooks: str | None = Field(None, description="HOST:PORT where gateways tell what became of messages")
    webhook_secret: SecretStr | None = Field(
        None, description="what gateways of the generic contract sign their events with"
    )
    webhook_window_s: float = Field(300.0, gt=0, description="how far a signature's time may be from ours")
    whatsapp_app_secret: SecretStr | None = Field(None, description="the secret of the Meta app whose webhooks come in")
    whatsapp_verify_token: SecretStr | None = Field(None, description="what Meta says when a webhook is registered")

    gateway_hosts: str = Field("", description="names that gateways have, and networks that need not be public")

    @field_validator("gateway_hosts")
    @classmethod
    def _hosts(cls, given: str) -> str:
        GatewayHosts(given)
        return given

    @field_validator("webhook_secret", "whatsapp_app_secret", "whatsapp_verify_token")
    @classmethod
    def _secret(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and len(value.get_secret_value()) < SECRET_CHARACTERS:
            raise ValueError(f"it must have at least {SECRET_CHARACTERS} characters: it is all that keeps others out")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.guard_s < self.deadline_s + 2 * self.skew_s:
            raise ValueError(
                f"guard_s={self.guard_s} must be at least deadline_s + 2 x skew_s = {self.deadline_s + 2 * self.skew_s}"
            )
        if self.trust_s >= self.leader_s:
            raise ValueError(f"trust_s={self.trust_s} must be below leader_s={self.leader_s}")
        if self.lease_s <= self.deadline_s:
            raise ValueError(f"lease_s={self.lease_s} must be above deadline_s={self.deadline_s}")
        if self.horizon_s > self.lease_s / 2:
            raise ValueError(f"horizon_s={self.horizon_s} must be at most half of lease_s={self.lease_s}")
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments, environment, then ``dripline.toml`` in the working directory."""
        return (init_settings, env_settings, TomlConfigSettingsSource(settings_cls))

    def hours_us(self, hours: float) -> int:
        """``hours`` hours of this installation's length, in microseconds."""
        return round(hours * self.hour_s * 1_000_000)


def load_settings(**overrides: Any) -> Settings:
    """The settings in force; ``overrides`` that are None are left to the other sources.

    Raises:
        InputError: a value is out of range or a name is unknown (with the nearest known name).
    """
    given = {name: value for name, value in overrides.items() if value is not None}
    try:
        return Settings(**given)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            near = difflib.get_close_matches(name, Settings.model_fields, 1)
            raise InputError(_origin(name), "unknown setting", f"did you mean {near[0]!r}?" if near else "") from None
        raise InputError(_origin(name) if name else "settings", problem_of(error)) from None
    except UnicodeDecodeError:
        raise InputError(SETTINGS_FILE, "it is not UTF-8", "save it as UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise InputError(SETTINGS_FILE, str(error)) from None


def problem_of(error: ValidationError) -> str:
    """What is wrong first, in pydantic's words for people."""
    problem = str(error.errors()[0]["msg"]).removeprefix("Value error, ")
    return f"{problem[:1].lower()}{problem[1:]}"


def _origin(name: str) -> str:
    variable = f"DRIPLINE_{name.upper()}"
    return variable if variable in os.environ else f"setting {name!r}"
