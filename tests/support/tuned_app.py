"""The app with changed constants, for tests of real processes: `uvicorn --factory support.tuned_app:create_app`.

A constant of the service is the default of a constructor's keyword argument. The variable `TUNED` holds others as JSON,
by `module:class`: `{"app.scoring.scorer:Scorer": {"commit_attempts": 100}}`.
"""

import json
import os
from importlib import import_module

from fastapi import FastAPI

from app import main


def create_app() -> FastAPI:
    for where, defaults in json.loads(os.environ["TUNED"]).items():
        module, _, name = where.partition(":")
        known = getattr(import_module(module), name).__init__.__kwdefaults__
        assert defaults.keys() <= known.keys(), f"{where} has defaults for {', '.join(known)}"
        known.update(defaults)
    return main.create_app()
