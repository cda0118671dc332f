"""Programs as answers: `rows` reads problems and their tests, `answer` extracts the program of a response, `pool` runs it
in a sandbox (`levels`, `cgroups`, and `box`, the code inside it), `graders` compares outputs, and `verifier` combines them.
"""
