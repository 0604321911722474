"""`python -m shop` runs the shop; so does `workerkit run shop`."""

from shop.container import Container
from workerkit import Runner

if __name__ == "__main__":
    Runner(Container(), packages=["shop"]).run()
