"""`tessy synthesize --dry-run`: the memory, the first prompts and the compiled programs of a run."""

from __future__ import annotations

from tessy_jax.config import Synthesize, reconcile
from tessy_jax.sharding import Partitioner, plan_mesh
from tessy_jax.synthesis.contamination import contaminated
from tessy_jax.synthesis.job import describe_prompts, prompts_of
from tessy_jax.synthesis.memory import memory
from tessy_jax.synthesis.model_set import ModelSet
from tessy_jax.synthesis.passes import chooser, first_pass
from tessy_jax.synthesis.prompts import jobs
from tessy_jax.synthesis.verification import VerifierFactory, open_verification
from tessy_jax.text.host_bridge import HostBridge


def describe(config: Synthesize, verifiers: VerifierFactory | None = None) -> str:
    """The plan as text, from configurations and tokenizers. It loads no weights. With `synthesis.lanes: auto`, it asks the
    devices for their memory.

    verifiers: as in `synthesize`.

    Raises:
        TessyError: the run could not start.
    """
    with open_verification(config.synthesis.verification, verifiers) as verifier:
        source = prompts_of(config.data, verifier)
    contamination = contaminated(config.data, source.prompts, ())
    config = reconcile(config, None)
    partitioner = Partitioner(plan_mesh(config.mesh)) if config.mesh else Partitioner()
    models = ModelSet(config, partitioner)
    prompts = [prompt for prompt in source.prompts if prompt.id not in contamination]
    skipped = f"{len(source.skipped)} rows skipped" + (
        f", {len(source.prompts) - len(prompts)} contaminated" if contamination else ""
    )
    responses = len(jobs(prompts, config.data.rollouts))
    models.limit_lanes(responses)
    lines = [f"{responses} responses to {len(prompts)} prompts ({skipped}), {config.output}", ""]
    first = first_pass(config)
    if first is not None:
        lines += [f"after a first pass, {first.synthesis.recipe}:", "", describe(first, verifiers), ""]
    scorer = chooser(config, partitioner)
    if scorer is not None:
        scorer.limit_lanes(1)
        lines += ["the scorer, which reads one response at a time on each lane shard:", *memory(scorer)[1], ""]
    lines += [describe_prompts(models, prompts or source.prompts), "", *memory(models)[1], ""]
    lines += _programs(models)
    return "\n".join(lines)


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
