"""Programs as answers: `rows` reads problems and their tests, `answer` finds the program in a response, `pool` runs it in a
sandbox (`levels`, `cgroups`, and `box`, which is what runs inside), `graders` compare, and `verifier` puts all together.
"""
