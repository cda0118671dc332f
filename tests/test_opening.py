"""Process 0 writes the run folder of a job of several processes, and all of them learn of its results and errors."""

import json

from tessy_jax.store import RunReader
from tests import several

CODE = """
import json, sys
from contextlib import ExitStack
from tessy_jax.config import Synthesize
from tessy_jax.errors import DataError
from tessy_jax.processes import initialize, is_primary
from tessy_jax.store.opening import PrimaryStore
from tessy_jax.store.run import RunStore

initialize()
with ExitStack() as stack:
    made = []

    def make():
        made.append(True)
        return stack.enter_context(RunStore(sys.argv[1]))

    store = PrimaryStore(make)
    assert made == [True] * is_primary()
    store.save_config("output: here")
    store.save_metrics("{}\\n")
    store.save_page("page.html", "page")
    store.save_summary({"loss": 0.5})
    results = [store.run(lambda files: files.summary())]

    def refuse(files):
        raise DataError("the disk is full")

    try:
        store.run(refuse)
    except DataError as error:
        results.append(str(error))
    print(json.dumps(results))
"""


def test_one_process_writes_and_all_receive_its_results_and_its_errors(tmp_path):
    codes, outputs = several.ended(several.start("-c", CODE, tmp_path / "run", devices=1))
    assert codes == [0, 0], outputs
    assert [json.loads(output.splitlines()[-1]) for output, _ in outputs] == [[{"loss": 0.5}, "the disk is full"]] * 2
    reader = RunReader(str(tmp_path / "run"))
    assert (reader.config() or "").endswith("output: here")
    assert reader.summary() == {"loss": 0.5}
    assert reader.file("page.html") == b"page"
