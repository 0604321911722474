"""The container. A parameter of a consumer gets the provider with its name."""

from dependency_injector import providers
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from workerkit import WorkerContainer

# with amqp
from shop.announce import Announce

# end
from shop.database import Sessions, Transaction, current_session, open_engine
from shop.orders import OrderRepository
from shop.settings import Settings


class Container(WorkerContainer):
    settings = providers.Singleton(Settings)
    engine = providers.Resource(open_engine, settings)
    sessions: "providers.Provider[Sessions]" = providers.Singleton(async_sessionmaker, engine)
    # The session of the present call, which `Transaction` has opened.
    session: "providers.Provider[AsyncSession]" = providers.Callable(current_session.get)
    orders = providers.Factory(OrderRepository, session)
    # Around every call of `handle`, the first one outermost.
    interceptors = providers.List(
        # with amqp
        Announce,
        # end
        Transaction,
    )
