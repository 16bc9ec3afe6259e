"""A job's network and images: imported, read, decoded, digested.

Imports `config` and, for patience with remote files, `storage`. Start with `model.build_model` and
`images.open_images`; then `sources`, one file each, `decode`, and `user_code`, which all code that
a job names is run through.
"""
