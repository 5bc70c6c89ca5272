"""The doctor: what is there, what is wrong, and what to do about it.

`findings` needs nothing but Python, `checks` the pack's own packages; what asks ComfyUI is in `host.diagnosis`.
"""
