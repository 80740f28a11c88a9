"""Files on a disk or on S3, written atomically.

May import setting, text, errors, interruption, torch_private; no torch.
"""
