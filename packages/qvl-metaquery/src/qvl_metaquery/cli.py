"""The verbs of qvl-metaquery; each imports what it needs when it runs."""

from qvl_core.cli import App

app = App("qvl-metaquery", package="qvl_metaquery", help="Qwen3-VL that draws.")
app.common("train", "tiny", "recipes", "report", "doctor", "slurm")

main = app.main
