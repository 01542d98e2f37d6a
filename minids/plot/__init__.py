"""Figures: plain functions from data to a picture, so that a notebook, a widget and a test all draw the same one.

    from minids import plot
    plot.cache_bytes({"MHA": 4_194_304, "MLA": 70_272}, max_context=131_072)

To add one: write a function in the file of its floor (`model.py`, `training.py`, ...), import it below.

    @styled
    def load_map(load: Sequence[Sequence[int]], title: str = "Tokens per expert") -> Picture:
        picture, ax = axes("Heat map: tokens per expert and step", height=3)
        ax.imshow(load, aspect="auto")
        ax.set(title=title, xlabel="expert", ylabel="step")
        return picture

It takes numbers, lists and arrays, never a model, a file or a notebook; says in one sentence what it shows (the first
argument of `axes`, the text for those who cannot see it); labels both axes with units; and tells series apart by more
than colour: a line style of `LINES`, a marker, a text. Texts from data (tokens, Chinese) go through `label`, since only
the letters of matplotlib's own font are there on every machine. `picture.png()` gives the bytes. Keep within 300 ms,
with the axes 7 inches wide, so that a slider over it feels alive.
"""

from minids.plot.attention import cache_of_models, decode_cost, low_rank, numbers_per_token, quality_by_cache
from minids.plot.balance import (
    balance_cost,
    balance_curves,
    domain_pair,
    load_maps,
    node_traffic,
    relative_load,
    router_lab,
)
from minids.plot.context import angles_seen, bent_frequencies, needle_maps
from minids.plot.decode import draft_cycles, draft_speed, kept_by_depth, sampling_bars
from minids.plot.fp8 import accumulation_error, loss_runs, outlier_map, rounding_error, three_products
from minids.plot.grpo import clipping, reinforcement, tries
from minids.plot.heads import mask_corners, step_times, turning_pairs, what_fits
from minids.plot.inside import experts_of_tokens, next_tokens, residual_stream
from minids.plot.machine import machine
from minids.plot.model import anatomy, by_depth, cache_bytes, conversions
from minids.plot.moe import dispatch_times, flow, shares, sorted_pairs, teams, used_parameters
from minids.plot.mtp import agreement, paired_runs, shifted_sequences
from minids.plot.network import memory_by_kind, network_lab, overlap_bars, sent_rows, token_copies
from minids.plot.pipeline import bubble_by_chunks, pair_lanes, pipeline_costs, pipeline_player, pipeline_schedule
from minids.plot.pretrain import live_run, race, schedule, spike
from minids.plot.r1 import ballot, languages, over_reward, recipe, students
from minids.plot.scoreboard import paired_results
from minids.plot.serving import expert_replicas, goodput, slots_over_time, token_gaps, two_batches
from minids.plot.sft import cold_starts, token_masks
from minids.plot.style import COLOURS, LINES, Picture, axes, label, style, styled
from minids.plot.tokens import after_the_cut, bytes_per_token, documents_in_rows, merge_wall
from minids.plot.training import curves
from minids.plot.treemap import treemap

__all__ = [
    "COLOURS", "LINES", "Picture", "accumulation_error", "after_the_cut", "agreement", "anatomy", "angles_seen",
    "axes", "balance_cost", "balance_curves", "ballot", "bent_frequencies", "bubble_by_chunks", "by_depth",
    "bytes_per_token", "cache_bytes", "cache_of_models", "clipping", "cold_starts", "conversions", "curves",
    "decode_cost", "dispatch_times", "documents_in_rows", "domain_pair", "draft_cycles", "draft_speed",
    "expert_replicas", "experts_of_tokens", "flow", "goodput", "kept_by_depth", "label", "languages", "live_run",
    "load_maps", "loss_runs", "low_rank", "machine", "mask_corners", "memory_by_kind", "merge_wall", "needle_maps",
    "network_lab", "next_tokens", "node_traffic", "numbers_per_token", "outlier_map", "over_reward", "overlap_bars",
    "pair_lanes", "paired_results", "paired_runs", "pipeline_costs", "pipeline_player", "pipeline_schedule",
    "quality_by_cache", "race", "recipe", "reinforcement", "relative_load", "residual_stream", "rounding_error",
    "router_lab", "sampling_bars", "schedule", "sent_rows", "shares", "shifted_sequences", "slots_over_time",
    "sorted_pairs", "spike", "step_times", "students", "style", "styled", "teams", "three_products", "token_copies",
    "token_gaps", "token_masks", "treemap", "tries", "turning_pairs", "two_batches", "used_parameters", "what_fits",
]  # fmt: skip
