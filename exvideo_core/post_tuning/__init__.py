"""Post-tuning: the method of the ExVideo paper (section 3.3), from a folder of videos to an extension.

clips → cache → objective → training. What is trained are the 16 temporal blocks; all else of SVD stays as it is.
"""
