"""Files on a disk or on S3, written whole or not at all."""
