"""`python -m rwt_client` is `rwt`."""

from .cli import main

main()
