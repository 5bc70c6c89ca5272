"""The settings of a training: those that cannot be, and what the command line says of them."""

import math

import pytest

from exvideo_core.post_tuning.__main__ import arguments
from exvideo_core.post_tuning.recipe import Recipe
from exvideo_core.types import ExVideoError


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "at least 1 for steps, got 0"),
        ({"save_every": 0}, "at least 1 for save_every, got 0"),
        ({"average_every": 0}, "at least 1 for average_every, got 0"),
        ({"accumulate": 0}, "at least 1 for accumulate, got 0"),
        ({"learning_rate": 0.0}, "learning rate lies between"),
        ({"sigma_min": 700.0}, "sigma_min lies between 0 and the schedule's 700, got 700"),
        ({"sigma_min": math.nan}, "sigma_min lies between"),
        ({"weight_decay": -1.0}, "weight_decay is 0 or more, got -1.0"),
        ({"clip_norm": 0.0}, "clip_norm is more than 0, got 0.0"),
        ({"average": 1.5}, "average is a share between 0 and 1, got 1.5"),
        ({"contrast": math.nan}, "contrast is a finite number, got nan"),
        ({"clip_norm": math.inf}, "clip_norm is a finite number, got inf"),
        ({"fps": 0.0}, "0.01 to 1000 frames a second, got fps = 0.0"),
    ],
)
def test_settings_that_cannot_be(change, message):
    with pytest.raises(ExVideoError, match=message):
        Recipe(**{"steps": 1, **change})


def test_every_option_is_explained():
    options = [action for action in arguments()._actions if action.dest != "help"]
    assert {"sigma_min", "accumulate", "learning_rate", "memory", "output"} <= {option.dest for option in options}
    assert all(option.help for option in options)
    told = " ".join(arguments().format_help().split())
    assert "of AdamW; the authors take 1e-5; 1e-05 by default" in told


@pytest.mark.parametrize("empty", ["checkpoint", "videos", "output", "extension"])
def test_an_empty_path_is_refused(empty, capsys):
    """As of a variable that is not set: it would be the folder that one happens to be in."""
    paths = {"checkpoint": "c", "videos": "v", "output": "o", "extension": "e", empty: ""}
    with pytest.raises(SystemExit):
        arguments().parse_args(["--steps=1", *(f"--{name}={path}" for name, path in paths.items())])
    assert f"argument --{empty}: expected a path, got an empty text" in capsys.readouterr().err
