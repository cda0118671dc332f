"""The recipes (method, section 5) as plain data: which models write, who thinks, who answers, and the first pass, if any.

A new recipe is a new entry of `RECIPES`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

Writer = Literal["student", "teacher"]


@dataclass(frozen=True)
class Roles:
    """The writers of one response.

    thinkers: the writers of the thinking; the first one begins.
    answerer: the writer of the final answer; None stands for `synthesis.final_answer`.
    """

    thinkers: tuple[Writer, ...]
    answerer: Writer | None = None


@dataclass(frozen=True)
class FirstPass:
    """A synthesis whose responses the recipe builds on.

    recipe: the recipe of the first pass.
    folder: its run folder, within that of the second pass.
    candidates: it writes `synthesis.candidates` responses for each response of the second pass, instead of one.
    verified: `synthesis.verification` applies to its responses.
    """

    recipe: str
    folder: str
    candidates: bool = False
    verified: bool = False


@dataclass(frozen=True)
class Recipe:
    """How the responses of a synthesis are made.

    writers: the models that write.
    roles: response number n has roles[n % len(roles)]; n is uniform over 32 bits.
    interleaved: the writers alternate within the thinking, which needs a boundary predictor for each.
    first_pass: the pass before this one, if any.
    scorer: the model that chooses one of the candidates of the first pass; None if this pass writes responses itself.
    reference: the writer of the first pass whose response the prompts show, or the part that `synthesis.reference` selects;
        None if prompts show no reference.
    """

    writers: tuple[Writer, ...]
    roles: tuple[Roles, ...]
    interleaved: bool = False
    first_pass: FirstPass | None = None
    scorer: Writer | None = None
    reference: Writer | None = None

    def __post_init__(self) -> None:
        """Raises ValueError if the parts of the recipe contradict each other."""
        models = get_args(Writer)
        named = {writer for roles in self.roles for writer in (*roles.thinkers, roles.answerer) if writer is not None}
        unknown = {*self.writers, *named, self.scorer, self.reference} - {*models, None}
        if unknown:
            raise ValueError(f"{min(map(str, unknown))} is not a model of a configuration; use student or teacher")
        if self.writers != tuple(model for model in models if model in self.writers):
            raise ValueError(f"the writers are {', '.join(self.writers)}; list each once, the student before the teacher")
        if not named <= set(self.writers):
            raise ValueError(f"{min(named - set(self.writers))} has a role and is not among the writers; add it")
        if not self.roles or any(len(set(roles.thinkers)) != max(len(roles.thinkers), 1) for roles in self.roles):
            raise ValueError("every recipe has roles, and each of them one thinker or two different ones; set thinkers")
        if named != set(self.writers) and all(roles.answerer for roles in self.roles):
            raise ValueError(f"{min(set(self.writers) - named)} is a writer without a role; remove it, or give it one")
        if not self.interleaved and any(len(roles.thinkers) > 1 for roles in self.roles):
            raise ValueError("two thinkers alternate; set interleaved=True, which requires boundary predictors")
        if self.interleaved and all(len(roles.thinkers) < 2 for roles in self.roles):
            raise ValueError("interleaved=True needs two thinkers; name both, or set interleaved=False")
        self._check_first_pass()

    def _check_first_pass(self) -> None:
        if self.first_pass is None:
            if self.scorer or self.reference:
                raise ValueError("a scorer or a reference needs a first pass; set first_pass")
            return
        if (self.scorer is None) == (self.reference is None):
            raise ValueError("a first pass serves a scorer or a reference; set one of them")
        if self.first_pass.candidates != (self.scorer is not None):
            raise ValueError("a scorer chooses among candidates; set candidates=True with a scorer, and only then")
        if not self.first_pass.folder:
            raise ValueError("the first pass has no folder; name one within the run folder")

    @property
    def requirements(self) -> tuple[str, ...]:
        """The dotted keys that a configuration with this recipe must set."""
        models = {*self.writers, self.scorer, self.reference}
        predictors = self.writers if self.interleaved else ()
        return (
            *(name for name in get_args(Writer) if name in models),
            *(f"boundary.{name}" for name in predictors),
        )


STUDENT, TEACHER = Roles(("student",), "student"), Roles(("teacher",), "teacher")
BOTH: tuple[Writer, ...] = ("student", "teacher")

RECIPES: dict[str, Recipe] = {
    "tessy": Recipe(BOTH, (Roles(BOTH),), interleaved=True),
    "teacher_only": Recipe(("teacher",), (TEACHER,)),
    "student_only": Recipe(("student",), (STUDENT,)),
    "teacher_think": Recipe(BOTH, (Roles(("teacher",), "student"),)),
    "teacher_answer": Recipe(BOTH, (Roles(("student",), "teacher"),)),
    "teacher_mix": Recipe(BOTH, (STUDENT, TEACHER)),
    "teacher_score": Recipe(
        ("student",),
        (STUDENT,),
        first_pass=FirstPass("student_only", "candidates", candidates=True, verified=True),
        scorer="teacher",
    ),
    "teacher_reference": Recipe(
        ("student",), (STUDENT,), first_pass=FirstPass("teacher_only", "references"), reference="teacher"
    ),
}


def check_first_passes(recipes: Mapping[str, Recipe]) -> None:
    """Checks that first passes are recipes without a first pass, and that they write the references that their recipes show.

    Raises:
        ValueError: one is not; names both recipes.
    """
    for name, recipe in recipes.items():
        if recipe.first_pass is None:
            continue
        first = recipes.get(recipe.first_pass.recipe)
        if first is None or first.first_pass is not None:
            raise ValueError(f"{name}: its first pass {recipe.first_pass.recipe} is not a recipe of one pass; name another")
        if recipe.reference is not None and recipe.reference not in first.writers:
            raise ValueError(f"{name}: {recipe.reference} does not write in its first pass {recipe.first_pass.recipe}")


check_first_passes(RECIPES)
