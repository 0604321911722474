"""The compression libraries that are optional for workerkit; one of them has no types."""

import importlib
import sys

brotli = importlib.import_module("brotli")
zstd = importlib.import_module(
    "compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd"
)
