"""The command line, `rayrec VERB`: each verb calls the pipeline or the service and prints the result.

Heavy imports stand inside the verbs, so that `rayrec --help` is quick.
"""

from app.cli.program import app, main

__all__ = ["app", "main"]
