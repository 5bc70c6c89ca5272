"""ExVideo's tensors and files, free of ComfyUI except for one seam, `host`.

The stages follow the data: `files`, `svd` and `extension` → `layers` (the extended temporal layer) and `chunked` (all
layers, in little memory) → `conditioning` → `schedule` and `sampling` → `decode` → `export`. `plan` holds their integer
geometry.
"""
