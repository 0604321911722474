"""The settings: environment variables that begin with `SHOP_`."""

from pydantic import SecretStr
from pydantic_settings import SettingsConfigDict

from workerkit import SSESettings, WorkerSettings


class Settings(WorkerSettings):
    """`SHOP_AMQP__DEFAULT__URL`, `SHOP_SSE__SHOP__URL`, `SHOP_LARGEST_QUANTITY`, ..."""

    model_config = SettingsConfigDict(env_prefix="SHOP_")

    # The event stream of booked orders; by default, this process serves it.
    sse: dict[str, SSESettings] = {"shop": SSESettings(url=SecretStr("http://127.0.0.1:8080"))}
    largest_quantity: int = 1_000
