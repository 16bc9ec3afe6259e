"""A run directory as one page to look at: ``report.html``, nothing loaded from outside.

Imports `storage`, `config`, `text` and what lies below them; knows no network and no Ray. Start
with `page`, which puts the sections together: `report` makes the page, `publish_report` writes it.

`read` says what a run's tables and `records` what its JSON files hold, or that they are not there.
One file, one section, in a reader's order: `verdict`, `groups`, `curves`, `scores`, `cards` (with
`sprites`, their pictures), then the mechanism (`correlations`, `classes` with `removal`,
`interactions`, `sizes`, `negatives`, `sampling`) and `provenance`. They share `parts` (a section, a
table, what is missing), `plots` (how a figure looks and becomes SVG), `order` (what the job ranks
units by), `units` (how one is named), `wording` (numbers and names in words) and the templates
beside them, whose words a browser shows.
"""
