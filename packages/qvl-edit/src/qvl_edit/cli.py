"""The verbs of qvl-edit; each imports what it needs when it runs."""

from qvl_core.cli import App

app = App("qvl-edit", package="qvl_edit", help="Fine-tune Qwen-Image-Edit on your pairs.")
app.common("doctor")

main = app.main
