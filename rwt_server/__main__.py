"""`python -m rwt_server` is `rwt-server`."""

from .cli import main

main()
