"""A job's network and images: imported, read, decoded, digested.

Imports `config` and, for patience with remote files, `storage`. Start with `model.build_model` and
`images.open_images`.
"""
