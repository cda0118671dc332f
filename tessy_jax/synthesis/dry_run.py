"""`tessy synthesize --dry-run`: the memory, the first prompts and the compiled programs of a run."""

from __future__ import annotations

from tessy_jax.config import Synthesize, reconcile
from tessy_jax.decode.engine import CACHE_SLACK, PREDICTOR_SLACK, margin
from tessy_jax.decode.pool import token_bytes
from tessy_jax.decode.predictor_window import ROWS
from tessy_jax.models.pages import PAGE, page_count
from tessy_jax.models.plan import plan
from tessy_jax.sharding import Partitioner, plan_mesh
from tessy_jax.synthesis.contamination import contaminated
from tessy_jax.synthesis.job import describe_prompts, prompts_of
from tessy_jax.synthesis.model_set import ModelSet
from tessy_jax.synthesis.passes import chooser, first_pass
from tessy_jax.synthesis.prompts import jobs
from tessy_jax.synthesis.verification import VerifierFactory, open_verification
from tessy_jax.text.host_bridge import HostBridge

GIB = 1 << 30


def describe(config: Synthesize, verifiers: VerifierFactory | None = None) -> str:
    """The plan as text, from configurations and tokenizers alone; it needs neither weights nor devices.

    verifiers: as in `synthesize`.

    Raises:
        TessyError: the run could not start.
    """
    with open_verification(config.synthesis.verification, verifiers) as verifier:
        source = prompts_of(config.data, verifier)
    contamination = contaminated(config.data, source.prompts, ())
    config = reconcile(config, None)
    partitioner = Partitioner(plan_mesh(config.mesh)) if config.mesh else Partitioner()
    partitioner.check({"lanes": (config.synthesis.lanes, "synthesis.lanes")})
    models = ModelSet(config, partitioner)
    prompts = [prompt for prompt in source.prompts if prompt.id not in contamination]
    skipped = f"{len(source.skipped)} rows skipped" + (
        f", {len(source.prompts) - len(prompts)} contaminated" if contamination else ""
    )
    responses = len(jobs(prompts, config.data.rollouts))
    lines = [f"{responses} responses to {len(prompts)} prompts ({skipped}), {config.output}", ""]
    first = first_pass(config)
    if first is not None:
        lines += [f"after a first pass, {first.synthesis.recipe}:", "", describe(first, verifiers), ""]
    scorer = chooser(config, partitioner)
    if scorer is not None:
        lines += [
            "the scorer, which reads one response at a time on each lane shard:",
            *memory(scorer)[1],
            "",
        ]
    lines += [describe_prompts(models, prompts or source.prompts), "", *memory(models)[1], "", *_programs(models)]
    return "\n".join(lines)


def memory(models: ModelSet) -> tuple[int, list[str]]:
    """Bytes of weights and caches on one device, and lines that show them by model."""
    synthesis = models.config.synthesis
    lanes, context = synthesis.lanes, synthesis.max_prompt_tokens + synthesis.max_response_tokens
    lines, total = [f"memory per device, {lanes} lanes of up to {context} tokens:"], 0
    for writer in models.writers:
        result = plan(
            writer.config,
            dtype=writer.section.dtype,
            mesh=models.config.mesh,
            lanes=lanes,
            context=context + margin(max(models.steps)),
            pool=synthesis.cache_tokens,
            slack=CACHE_SLACK,
        )
        weights, cache = result["weights"]["bytes_per_device"], result["kv"]["bytes_per_device"]
        total += weights + cache
        lines.append(f"  {writer.name:<20} weights {weights / GIB:8.2f} GiB   caches {cache / GIB:8.2f} GiB")
    for name, predictor in zip(models.names, models.predictors, strict=True):
        if predictor is None:
            continue
        dtype, window = models.config.boundary.dtype, models.config.boundary.window
        result = plan(predictor.config, dtype=dtype, mesh=models.config.mesh, lanes=lanes, context=window, slack=CACHE_SLACK)
        weights = result["weights"]["bytes_per_device"]
        rows = ROWS * lanes // models.partitioner.num_shards("lanes")
        tokens = rows * page_count(window + PREDICTOR_SLACK) * PAGE
        cache = tokens * token_bytes(predictor.config, predictor.config.layers, dtype, models.partitioner)
        total += weights + cache
        kind = f"{name}'s predictor"
        lines.append(f"  {kind:<20} weights {weights / GIB:8.2f} GiB   caches {cache / GIB:8.2f} GiB")
    return total, [*lines, f"  {'total':<20} {total / GIB:.2f} GiB, plus temporary arrays of the programs"]


def _programs(models: ModelSet) -> list[str]:
    kinds = ("share", "prefill")
    names = ", ".join(["insert", *(f"{kind} {i}" for kind in kinds for i in range(len(models.writers))), "loop"])
    bridges = []
    for writer, bridge in zip(models.writers, models.bridges, strict=True):
        location = "on the host" if isinstance(bridge, HostBridge) else f"on the device ({bridge.rule})"
        bridges.append(f"  the {writer.name}'s vocabulary: text is tokenized {location}")
    shared = "one vocabulary: tokens are shared" if models.one_vocabulary and len(bridges) > 1 else None
    reads = [
        f"  the {name}'s predictor reads {models.names[predictor.reads]} tokens"
        for name, predictor in zip(models.names, models.predictors, strict=True)
        if predictor is not None
    ]
    return [
        f"programs, each compiled once: {names}",
        *([f"  {shared}"] if shared else bridges),
        *reads,
    ]
