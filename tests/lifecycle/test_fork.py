"""After fork() the child owns nothing: it is told so, hangs nowhere, and the parent goes on."""

from __future__ import annotations

# in_child(f) runs f in a forked child, which then ends like any program does (collecting garbage,
# running exit handlers). It must do so with 0; a child that hangs makes the test time out.
FORKING = """
import traceback

def in_child(work):
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        sys.exit(0)
    assert os.waitpid(pid, 0)[1] == 0

def refused(call):
    try:
        call()
    except ForkedProcessError:
        return True
"""


def test_child_is_refused_and_parent_goes_on(python) -> None:
    python(
        FORKING
        + """
runner = new_runner()
expected = runner.generate_stateless("The sky is", 8, **GREEDY).text
stream = runner.stream_stateful("The sky is", 30, **ENDLESS)
head = next(stream).text

def child():
    assert refused(lambda: runner.generate_stateless("The sky is", 8))
    assert refused(lambda: runner.generate_stateful("The sky is", 8))
    assert refused(lambda: runner.stream_stateless("The sky is", 8))
    assert refused(lambda: next(stream))
    assert refused(runner.gc_context)
    assert refused(runner.clear_context)
    assert refused(runner.get_context_info)

in_child(child)
assert runner.generate_stateless("The sky is", 8, **GREEDY).text == expected
text = head + "".join(chunk.text for chunk in stream)
assert text == runner.generate_stateless("The sky is", 30, **ENDLESS).text
runner.close()
"""
    )


def test_child_may_let_go_of_everything(python) -> None:
    python(
        FORKING
        + """
runner = new_runner()
streams = [runner.stream_stateless("The sky is", 30, **ENDLESS) for _ in range(2)]
for stream in streams:
    next(stream)

def drop():
    global runner, streams, stream
    del runner, streams, stream
    gc.collect()

def close():
    for stream in streams:
        stream.cancel()
        stream.close()
    runner.close()
    runner.close()

def leave_with_block():
    with runner, streams[0]:
        raise SystemExit

def expect_exit():
    try:
        leave_with_block()
    except SystemExit:
        pass

for work in (drop, close, expect_exit, lambda: None):
    in_child(work)
assert runner.generate_stateless("The sky is", 8).usage.completion_tokens > 0
runner.close()
""",
        "-W",
        "error",
    )


def test_fork_while_threads_generate(python) -> None:
    # The locks and condition variables of the decode loop are in use, by threads that the child
    # does not have.
    python(
        FORKING
        + """
runner = new_runner()
stream = runner.stream_stateless("The sky is", 30)
next(stream)
go_on = True

def generate():
    while go_on:
        runner.generate_stateless("The sky is", 20, **ENDLESS)

def drop():
    global runner, stream
    stream.cancel()
    stream.close()
    runner.close()
    del runner, stream
    gc.collect()

threads = [threading.Thread(target=generate) for _ in range(2)]
for thread in threads:
    thread.start()
for _ in range(10):
    time.sleep(0.03)
    in_child(drop)
go_on = False
for thread in threads:
    thread.join()
runner.close()
"""
    )


def test_child_can_load_its_own(python) -> None:
    answer = python(
        FORKING
        + """
runner = new_runner()
text = runner.generate_stateless("The sky is", 8, **GREEDY).text

def child():
    with new_runner() as own:
        print(own.generate_stateless("The sky is", 8, **GREEDY).text == text, flush=True)

in_child(child)
runner.close()
"""
    )
    assert answer == "True\n"


def test_multiprocessing_with_spawn(python, tmp_path) -> None:
    # A spawned worker imports the program again, so this one has to be a file.
    program = tmp_path / "workers.py"
    program.write_text(
        """
import multiprocessing, sys
from llama_runner import LlamaRunner

def work(prompt):
    with LlamaRunner(sys.argv[1], n_ctx=512, n_threads=1) as runner:
        return runner.generate_stateless(prompt, 8, temperature=0.0).text

if __name__ == "__main__":
    with LlamaRunner(sys.argv[1], n_ctx=512, n_threads=1) as runner:
        with multiprocessing.get_context("spawn").Pool(2) as pool:
            answers = pool.map(work, ["The sky is", "Why"])
        for prompt, answer in zip(["The sky is", "Why"], answers):
            print(runner.generate_stateless(prompt, 8, temperature=0.0).text == answer)
"""
    )
    answer = python(f"import runpy; runpy.run_path({str(program)!r}, run_name='__main__')")
    assert answer == "True\nTrue\n"


def test_error_from_a_forked_worker_reaches_the_parent(python) -> None:
    answer = python(
        """
        import multiprocessing
        runner = new_runner()

        def work(_):
            return runner.generate_stateless("The sky is", 8)

        pool = multiprocessing.get_context("fork").Pool(1)
        try:
            pool.map(work, [0])
        except ForkedProcessError as error:
            print(error)
        pool.close()
        pool.join()
        runner.close()
        """
    )
    assert answer.startswith("this context was made before fork()")
    assert len(answer.splitlines()) == 1
