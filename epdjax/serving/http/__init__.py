"""The OpenAI-compatible HTTP server: `create_app` makes the application, `serve` runs it until it is told to stop."""

from epdjax.serving.http.app import create_app
from epdjax.serving.http.server import HttpServer, bind, serve

__all__ = ["HttpServer", "bind", "create_app", "serve"]
