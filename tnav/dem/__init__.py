"""Digital elevation models as files: find, check, fetch, import, mosaic, sample."""
