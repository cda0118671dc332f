"""`tessy synthesize --dry-run`: what a run would hold in memory, what its models would be asked, and what would be
compiled."""

from __future__ import annotations

from tessy_jax.config import Synthesize, settle
from tessy_jax.decode.engine import REWOUND
from tessy_jax.decode.generate import bucket, buckets
from tessy_jax.decode.loop import FILL
from tessy_jax.models.plan import cached_numbers, plan
from tessy_jax.sharding import Layout, plan_mesh
from tessy_jax.synthesis.cast import Cast
from tessy_jax.synthesis.contamination import contaminated
from tessy_jax.synthesis.job import describe_prompts, prompts_of
from tessy_jax.synthesis.passes import before, chooser
from tessy_jax.synthesis.prompts import jobs
from tessy_jax.synthesis.verification import Judges, verifying
from tessy_jax.text.bridge import DeviceBridge

GIB = 1 << 30


def describe(config: Synthesize, judges: Judges | None = None) -> str:
    """The plan as text; needs the configurations and tokenizers of the models, and neither weights nor devices. judges: as
    for `synthesize`.

    Raises:
        TessyError: what would stop the run at its start.
    """
    with verifying(config.synthesis.verification, judges) as verifier:
        found = prompts_of(config.data, verifier)
    over = contaminated(config.data, found.prompts, ())
    config = settle(config, None)
    layout = Layout(plan_mesh(config.mesh)) if config.mesh else Layout()
    layout.check({"lanes": (config.synthesis.lanes, "synthesis.lanes")})
    cast = Cast(config, layout)
    prompts = [prompt for prompt in found.prompts if prompt.id not in over]
    skipped = f"{len(found.skipped)} rows skipped" + (f", {len(found.prompts) - len(prompts)} contaminated" if over else "")
    wanted = len(jobs(prompts, config.data.rollouts))
    lines = [f"{wanted} responses to {len(prompts)} prompts ({skipped}), {config.output}", ""]
    earlier = before(config)
    if earlier is not None:
        lines += [f"after a first pass, {earlier.synthesis.recipe}:", "", describe(earlier, judges), ""]
    teacher = chooser(config, layout)
    if teacher is not None:
        lines += [
            "the teacher that chooses, which reads one response after another on each lane shard:",
            *_memory(teacher),
            "",
        ]
    lines += [describe_prompts(cast, prompts or found.prompts), "", *_memory(cast), "", *_programs(cast)]
    return "\n".join(lines)


def _memory(cast: Cast) -> list[str]:
    synthesis = cast.config.synthesis
    lanes, context = synthesis.lanes, synthesis.max_prompt_tokens + synthesis.max_response_tokens
    lines, total = [f"memory per device, {lanes} lanes of up to {context} tokens:"], 0
    for voice in cast.voices:
        result = plan(
            voice.config,
            dtype=voice.section.dtype,
            mesh=cast.config.mesh,
            lanes=lanes,
            context=bucket(context),
            slack=max(FILL, REWOUND),
        )
        weights, cache = result["weights"]["bytes_per_device"], result["kv"]["bytes_per_device"]
        total += weights + cache
        lines.append(f"  {voice.name:<20} weights {weights / GIB:8.2f} GiB   caches {cache / GIB:8.2f} GiB")
    for name, predictor in zip(cast.names, cast.predictors, strict=True):
        if predictor is None:
            continue
        dtype, window = cast.config.boundary.dtype, cast.config.boundary.window
        result = plan(predictor.config, dtype=dtype, mesh=cast.config.mesh, lanes=lanes, context=window, slack=FILL)
        weights = result["weights"]["bytes_per_device"]
        numbers = cached_numbers(predictor.config) * predictor.config.layers * 2 * lanes * (window + REWOUND)
        ways = cast.layout.ways("lanes") * (1 if predictor.config.latent else cast.layout.ways("kv_heads"))
        cache = numbers * (4 if dtype == "float32" else 2) // ways
        total += weights + cache
        kind = f"{name}'s predictor"
        lines.append(f"  {kind:<20} weights {weights / GIB:8.2f} GiB   caches {cache / GIB:8.2f} GiB")
    return [*lines, f"  {'in all':<20} {total / GIB:.2f} GiB, and the programs' own temporaries"]


def _programs(cast: Cast) -> list[str]:
    synthesis = cast.config.synthesis
    sizes = buckets(synthesis.max_prompt_tokens + synthesis.max_response_tokens + max(cast.steps) + 2)
    kinds = ("prefill",) if cast.layout.ways("lanes") > 1 else ("share", "prefill")
    names = ", ".join(["seat", *(f"{kind} {i}" for kind in kinds for i in range(len(cast.voices))), "loop"])
    how = []
    for voice, bridge in zip(cast.voices, cast.bridges, strict=True):
        where = f"on the device ({bridge.rule})" if isinstance(bridge, DeviceBridge) else "on the host"
        how.append(f"  the {voice.name}'s vocabulary: text into tokens {where}")
    shared = "one vocabulary: tokens are shared" if cast.one_vocabulary and len(how) > 1 else None
    reads = [
        f"  the {name}'s predictor reads {cast.names[predictor.reads]} tokens"
        for name, predictor in zip(cast.names, cast.predictors, strict=True)
        if predictor is not None
    ]
    return [
        f"programs, compiled once for each cache size that is reached, of {', '.join(map(str, sizes))} tokens: {names}",
        *([f"  {shared}"] if shared else how),
        *reads,
    ]
