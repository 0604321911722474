"""The settings: environment variables that begin with `SHOP_`, or lines of the file `.env`."""

import workerkit
from pydantic import SecretStr, field_validator
from pydantic_settings import SettingsConfigDict

DRIVERS = {
    "sqlite": "sqlite+aiosqlite",
    "postgres": "postgresql+asyncpg",
    "postgresql": "postgresql+asyncpg",
}


class Settings(workerkit.WorkerSettings):
    """`SHOP_DATABASE_URL`, `SHOP_AMQP__DEFAULT__URL`, `SHOP_LARGEST_QUANTITY`, ..."""

    model_config = SettingsConfigDict(env_prefix="SHOP_")

    # Or postgresql://user:password@host/name
    database_url: SecretStr = SecretStr("sqlite:///shop.db")
    # Upgrade the schema at each start; false where a deployment runs `alembic upgrade head` before.
    database_upgrade: bool = True
    largest_quantity: int = 1_000
    # with sse
    # The stream of booked orders; by default, this process serves it.
    sse: dict[str, workerkit.SSESettings] = {
        "shop": workerkit.SSESettings(url=SecretStr("http://127.0.0.1:8080"))
    }
    # end

    @field_validator("database_url")
    @classmethod
    def with_driver(cls, url: SecretStr) -> SecretStr:
        """Add the asynchronous driver: `postgresql://` becomes `postgresql+asyncpg://`."""
        database, separator, rest = url.get_secret_value().partition("://")
        if not separator or DRIVERS.get(database, database) not in DRIVERS.values():
            raise ValueError("should begin with postgresql:// or sqlite:///")
        # asyncpg has another name for what libpq calls sslmode.
        rest = rest.replace("?sslmode=", "?ssl=")
        return SecretStr(DRIVERS.get(database, database) + separator + rest)
