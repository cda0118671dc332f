"""The code inside the sandbox: a fork server and the programs that it starts. It runs in a separate process with only the
standard library: a module here imports nothing of the package except other modules here.
"""
