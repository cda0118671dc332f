"""Benchmark of verifying programs: short Python tests per second in the sandbox, everything included.

python scripts/bench_grading.py [--programs 40] [--tests 10] [--level namespaces] [--repeat 3]

Each program reads numbers, prints their sum, and passes all its tests; as many programs are verified at once as this
process has processors. One line of JSON: the level of the sandbox, tests, and tests per second of every repetition.
"""

import argparse
import json
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

PROGRAM = "```python\nimport sys\nnumbers = list(map(int, sys.stdin.read().split()))[1:]\nprint(sum(numbers))\n```"
NUMBERS = 1000


def problem_of(folder, tests):
    from tessy_jax.config.evaluation import Task
    from tessy_jax.evaluate.programs.rows import program_problems

    cases = []
    for test in range(tests):
        numbers = range(test, test + NUMBERS)
        cases.append({"input": f"{NUMBERS}\n{' '.join(map(str, numbers))}\n", "output": f"{sum(numbers)}\n"})
    file = folder / "rows.jsonl"
    file.write_text(json.dumps({"prompt": "Sum these.", "tests": cases}) + "\n")
    return program_problems(Task(name="bench", path=str(file), verifier="programs"))[0]


def main():
    from tessy_jax.config.evaluation import Programs
    from tessy_jax.evaluate.programs.pool import processors
    from tessy_jax.evaluate.programs.verifier import ProgramVerifier

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--programs", type=int, default=40)
    parser.add_argument("--tests", type=int, default=10)
    parser.add_argument("--level", help="of the sandbox (default: the strongest available)")
    parser.add_argument("--repeat", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        problem = problem_of(Path(folder), args.tests)
        started = time.perf_counter()
        with (
            ProgramVerifier(Programs(), unsafe=True, level=args.level) as verifier,
            ThreadPoolExecutor(processors()) as threads,
        ):
            opening_seconds = time.perf_counter() - started
            seconds = []
            for _ in range(args.repeat):
                start = time.perf_counter()
                verdicts = list(threads.map(lambda _: verifier.verify(problem, PROGRAM), range(args.programs)))
                seconds.append(time.perf_counter() - start)
                if not all(verdict.right for verdict in verdicts):
                    raise SystemExit(f"the verdict on a right program is {verdicts[0].why}")
            print(
                json.dumps(
                    {
                        "sandbox": verifier.sandbox.describes,
                        "processors": processors(),
                        "programs": args.programs,
                        "tests": args.programs * args.tests,
                        "seconds_to_open": round(opening_seconds, 3),
                        "seconds": [round(elapsed, 3) for elapsed in seconds],
                        "tests_per_second": [round(args.programs * args.tests / elapsed, 1) for elapsed in seconds],
                    }
                )
            )


if __name__ == "__main__":
    main()
