"""Loss curves of the run."""

from __future__ import annotations

from medvlp_core import Dims
from medvlp_core.data import InputPipeline
from medvlp_core.evaluation import Card, EvaluationRun, Evaluator
from medvlp_standard.evaluators.drawing import new_figure, save
from medvlp_standard.specs.evaluators import LossCurvesSpec


class LossCurves(Evaluator):
    """One panel for each loss term, unweighted, and one for the learning rate, over the steps; from ``metrics.jsonl``."""

    def __init__(self, spec: LossCurvesSpec, dims: Dims) -> None:
        self.spec = spec

    def obstacle(self, pipeline: InputPipeline, split: str) -> str | None:
        """None: only the training is looked at."""
        return None

    def evaluate(self, run: EvaluationRun) -> Card:
        """One picture; none without a training history."""
        from matplotlib.ticker import MaxNLocator

        if not run.history:
            return Card(evaluator="", note="no curves: this model was loaded, not trained in this run.")
        steps = [line["step"] for line in run.history]
        curves = {name: [line["losses"][name] for line in run.history] for name in run.history[0]["losses"]}
        curves["learning rate"] = [line["lr"] for line in run.history]
        columns = min(3, len(curves))
        rows = -(-len(curves) // columns)
        figure, axes = new_figure(self.spec.width, 2.3 * rows, rows, columns)
        for axis in axes.flat[len(curves) :]:
            axis.set_axis_off()
        for axis, (name, values) in zip(axes.flat, curves.items(), strict=False):
            axis.plot(steps, values, color="0.2" if name == "learning rate" else "C0", linewidth=1.4)
            axis.set_title(name, fontsize=9)
            axis.set_xlabel("step", fontsize=8)
            axis.tick_params(labelsize=7)
            axis.grid(alpha=0.3)
            axis.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        return Card(evaluator="", pictures=(save(figure, run, "loss_curves.png"),))
