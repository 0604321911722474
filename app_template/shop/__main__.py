"""Run the service with `python -m shop`, as `workerkit run shop` does."""

from shop.container import Container
from workerkit import Runner

if __name__ == "__main__":
    Runner(Container(), packages=["shop"]).run()
