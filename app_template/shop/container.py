"""The container. A parameter of a consumer gets the provider with its name."""

from dependency_injector import providers

from shop.orders import Notifier, OrderRepository, open_storage
from shop.settings import Settings
from workerkit import WorkerContainer


class Container(WorkerContainer):
    settings = providers.Singleton(Settings)
    storage = providers.Resource(open_storage)
    orders = providers.Singleton(OrderRepository, booked=storage)
    notifier = providers.Singleton(Notifier)
