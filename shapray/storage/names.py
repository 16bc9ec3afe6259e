"""What the files of a run are called."""

RUN = "run.json"
GROUPS, SCORES, CLASS_SCORES = "groups.parquet", "scores.parquet", "class_scores.parquet"
PRICES = "prices.parquet"
REPORT = "report.html"

# In the folder of a cut: the job's own is `CUTS`, others are folders in that.
CUTS = "prune"
PLAN, METRICS, CUT = "plan.json", "metrics.json", "cut.json"
CURVE, LOSSES = "curve.parquet", "group_losses.parquet"


def of_network(form: str) -> str:
    """The file of a compressed network: ``safetensors``, ``pt2``, ``onnx``."""
    return f"model.{form}"


def folder_of(cut: str | None) -> str:
    """Of a cut by its name; None: the job's own."""
    return CUTS if cut is None else f"{CUTS}/{cut}"


def explained(table: str) -> str:
    """One of the tables of `storage.explained`."""
    return f"explain/{table}.parquet"
