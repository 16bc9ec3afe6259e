"""A job's network and images: imported, read, decoded, digested.

Imports `config`, `constants`, `errors`, `credentials`, `text` and, for patience with remote files,
`storage.retry`. Start with `model.read_model` and `images.open_images`.

`sources` chooses among `parquet`, `folder` and `dataset`, which give a `listing`; `decode` makes
pixels of what they read, of which `lazy` keeps as many as fit; `weights` reads checkpoints;
`user_code` calls what a job names, `libraries` knows networks by name (`named`: without a job),
`outputs` reads logits from what a network returns; `digest` says what a run was made of.
"""
