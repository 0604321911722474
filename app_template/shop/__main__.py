"""Run the service with `python -m shop`, as `workerkit run shop` does."""

from workerkit import Runner

from shop.container import Container

if __name__ == "__main__":
    Runner(Container(), packages=["shop"]).run()
