"""The options of `willbuy serve`."""

import inspect

from app.cli import serve
from app.settings import Settings

# Of the server, which reads no settings.
SERVER = {"host", "port", "uds", "root_path", "workers"}


def test_an_option_of_serve_stands_for_a_setting_and_repeats_no_default():
    options = {name: option for name, option in inspect.signature(serve).parameters.items() if name not in SERVER}
    assert options.keys() <= Settings.model_fields.keys()
    assert not any(option.default for option in options.values())
