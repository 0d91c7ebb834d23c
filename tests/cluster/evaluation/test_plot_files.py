"""Where plots are written."""

from pathlib import Path

from cluster.evaluation.plots import plot_training


def test_a_plot_replaces_a_link_and_not_what_it_leads_to(tmp_path: Path) -> None:
    victim, out = tmp_path / "victim", tmp_path / "plot.png"
    victim.write_text("mine")
    out.symlink_to(victim)
    plot_training({"reward": {1: 0.5, 2: 0.7}}, "run", out)
    assert victim.read_text() == "mine"
    assert not out.is_symlink() and out.read_bytes().startswith(b"\x89PNG")
