"""What the tests of long videos have in common."""

SIZE = {"width": 64, "height": 64}
RAW = {"normalize": False, "contrast": 1.0, "min_cfg": 1.0, "max_cfg": 1.0}
SHORT = {"segment_frames": 6, "overlap": 2, "steps": 3, "seed": 5, **SIZE}


class StoppedError(Exception):
    pass
