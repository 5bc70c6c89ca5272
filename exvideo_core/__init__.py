"""ExVideo's tensors and files, free of ComfyUI except for one seam, `host.py`.

The stages follow the data: `svd` and `extension` (files) → `layers` (the extended temporal layer) →
`conditioning` → `schedule` and `sampling` → `decode` → `export`. `plan` holds their integer geometry.
"""
