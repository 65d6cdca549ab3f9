"""`python -m app VERB`, the same as `rayrec VERB`."""

from app.cli import main

main()
