"""What the shop is made of. Consumers get a provider by the name of a parameter."""

from dependency_injector import providers

from shop.orders import Customers, OrderRepository, open_book
from shop.settings import Settings
from workerkit import WorkerContainer


class Container(WorkerContainer):
    settings = providers.Singleton(Settings)
    book = providers.Resource(open_book)
    orders = providers.Singleton(OrderRepository, booked=book)
    customers = providers.Singleton(Customers)
