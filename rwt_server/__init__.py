"""The server of Rotational WebSockets, on aiohttp: standalone (`rwt-server serve`) or inside your application.

`create_app` returns an aiohttp application with all routes; add it to yours with `add_subapp`, or serve it.
"""

from .app import create_app
from .config import ChannelRules, ConfigError, Retention, ServerConfig
from .keys import KeyFile

__all__ = ["ChannelRules", "ConfigError", "KeyFile", "Retention", "ServerConfig", "create_app"]
