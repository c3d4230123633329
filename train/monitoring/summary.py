"""What a finished run says at its end: what was learned, and where everything is."""

from __future__ import annotations

from train.monitoring.metrics import METRICS, read_metrics
from train.monitoring.pace import pace_of
from train.persistence.run_folder import RunFolder

SCORES = {
    "knn": "k-NN top-1 on the labelled images",
    "linear": "top-1 of a linear probe (ridge) on them",
    "recognition": "pictures known by another view of them",
}

COUNTED = {
    "broken": "broken images left out (broken-*.txt names them)",
    "skipped": "steps skipped that were not finite (skipped.jsonl has their images)",
}


def summary(folder: RunFolder) -> str:
    """Return a few lines on a finished run: its scores at both ends, its losses, its files."""
    lines = list(read_metrics(folder.out / METRICS))
    trained = [line for line in lines if isinstance(line.get("loss"), float)]
    said = []
    for name, meaning in SCORES.items():
        found = [line[name] for line in lines if isinstance(line.get(name), float)]
        if found:
            said.append(f"  {found[0]:.1%} at the start, {found[-1]:.1%} now: {meaning}")
    if trained:
        first, last = trained[0], trained[-1]
        losses = [name for name in ("dino", "ibot", "koleo") if name in last]
        changes = ", ".join(f"{name} {first[name]:.2f} to {last[name]:.2f}" for name in losses)
        said.append(f"  losses: {changes}")
        rank = f"{first['feature_rank']:.0f} to {last['feature_rank']:.0f}"
        said.append(f"  effective rank of the features of a batch: {rank}")
        counted = [f"{last[name]:,} {what}" for name, what in COUNTED.items() if last.get(name)]
        said += [f"  {', '.join(counted)}"] if counted else []
        if share := pace_of(lines).share:
            said.append(f"  {share:.1%} of the time went into the scores")
    out = folder.out
    return "\n".join(
        [
            "What it learned",
            *said,
            "",
            f"In {out}",
            "  model/          the student's average, for timm and as an embedder:",
            f'                  create_model("local-dir:{out}/model", pretrained=True)',
            f"                  lvd-curate run --embedder {out}/model",
            "  metrics.jsonl   losses, schedules, gradient norms, signs of collapse, rates",
            "  tensorboard/    the same as curves",
            "  checkpoints/    to go on from",
            f"  lvd-train report {out}   draws all this as a page",
            "",
        ]
    )
