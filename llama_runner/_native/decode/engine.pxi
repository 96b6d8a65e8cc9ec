# Uses: signals, state, loop, turn
#
# The decode loop: driven by its callers, one turn at a time, for all of them together.
#
# A caller puts its request among the active ones and then either finds the loop free and runs it,
# for everybody, until its own request has what it needs; or finds it running and sleeps until its
# result is there or the loop is free. There is no thread of our own, so
# nothing outlives a call; a single caller pays one mutex per turn.
#
# Locks: see state.hpp. The monitor is held for moments only: never while llama.cpp computes or a
# state is moved, nor while Python runs. No thread waits for it while
# it holds the GIL: what llama.cpp logs meanwhile, perhaps to Python, would wait for the GIL.
from cython.operator cimport dereference as deref
from libc.stdint cimport int32_t, int64_t
from libcpp.atomic cimport atomic

from llama_runner._llama_cpp.shim.state cimport (
    Engine,
    NativeRequest,
    Phase,
    add_active,
    now_us,
    set_text,
)

cdef bint advance(Engine * engine, ContextBox * box, NativeRequest * request,
                  bint streaming) noexcept nogil:
    """Run the loop until the request is done or, when streaming, has text to show.

    False where that is impossible: this thread is inside a turn already (a signal handler or
    callback of that generation), or another one waits for this request already.
    """
    cdef bint in_main_thread = PyThread_get_thread_ident() == main_thread
    cdef size_t i
    engine.monitor.lock()
    if is_inside(engine) or is_active(engine, request):
        engine.monitor.unlock()
        return False
    if not add_active(deref(engine), request):
        fail_request(engine, box, request, -2)
        engine.monitor.unlock()
        return True
    request.streaming = streaming
    while not is_ready(request):
        # While the loop runs, the turn in hand may hold this request: only the leader ends it.
        if engine.closed and not engine.running:
            fail_request(engine, box, request, CONTEXT_CLOSED)
        elif engine.broken.load() and not engine.running:
            set_text(request.error, engine.broken_by)
            fail_request(engine, box, request, CONTEXT_BROKEN)
        elif engine.running or engine.exclusive_waiting > 0:
            engine.monitor.wait_ms(SIGNAL_CHECK_US // 1000)
            if in_main_thread:
                engine.monitor.unlock()
                if interrupted(engine):
                    request.cancelled.store(True)
                    engine.abort.store(True)
                engine.monitor.lock()
        else:
            take_loop(engine, request)
            while (not is_ready(request) and engine.exclusive_waiting == 0
                   and not engine.broken.load() and not engine.closed):
                take_turn(engine, box)
                if is_other_ready(engine, request):  # waking all for nothing takes long
                    engine.monitor.notify_all()
            leave_loop(engine, box)
    for i in range(engine.active.size()):
        if engine.active[i] == request:
            engine.active.erase(engine.active.begin() + i)
            break
    engine.monitor.unlock()
    return True


# ---- stopping ----------------------------------------------------------------------------------

cdef cpp_bool should_abort(void * data) noexcept nogil:
    """ggml's abort callback, polled between the nodes of a graph by the leader's thread."""
    cdef Engine * engine = <Engine *> data
    if engine.settling:
        return False  # half-moved cells cannot be made right again
    if process_exits.load():
        return True
    if engine.checks_signals:
        poll_signals(engine)
    # A recurrent state that is half computed is lost for all in the batch, so a cancelled request
    # waits for the end of the computation.
    if engine.traits.recurrent and engine.shares.size() > 1:
        return False
    return engine.abort.load()


cdef void poll_signals(Engine * engine) noexcept nogil:
    """Every now and then, let Python's signal handlers run; one that raises cancels the leader."""
    cdef int64_t now
    engine.polls += 1
    if engine.polls & 15:  # the clock costs more than the question
        return
    now = now_us()
    if now < engine.next_signal_check:
        return
    engine.next_signal_check = now + SIGNAL_CHECK_US
    if interrupted(engine):
        if engine.leader is not NULL:
            engine.leader.cancelled.store(True)
        engine.abort.store(True)
