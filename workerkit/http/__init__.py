"""HTTP: views and their signatures, errors, the OpenAPI document, the server."""
