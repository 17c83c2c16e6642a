"""RWT against a raw aiohttp WebSocket server that does the same work in clear text: `python -m benchmarks`."""
