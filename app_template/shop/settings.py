"""The shop's settings: environment variables that begin with `SHOP_`."""

from pydantic_settings import SettingsConfigDict

from workerkit import WorkerSettings


class Settings(WorkerSettings):
    """`SHOP_AMQP__DEFAULT__URL`, `SHOP_LARGEST_QUANTITY`, ..."""

    model_config = SettingsConfigDict(env_prefix="SHOP_")

    largest_quantity: int = 1_000
