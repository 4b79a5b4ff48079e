"""The verbs of qvl-mdlm; each imports what it needs when it runs."""

from qvl_core.cli import App

app = App("qvl-mdlm", package="qvl_mdlm", help="Qwen3-VL that writes by denoising.")
app.common("train", "check", "plan", "demo", "tiny", "recipes", "report", "doctor", "slurm")


main = app.main
