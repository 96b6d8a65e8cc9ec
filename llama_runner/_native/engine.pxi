# The decode loop: driven by its callers, one turn at a time, for all of them together.
#
# A caller puts its request among the active ones and then either finds the loop free and runs it,
# for everybody, until its own request has what it needs; or finds it running and sleeps until its
# result is there or the loop is free. There is no thread of our own: nothing outlives a call,
# and one caller alone pays a mutex per turn for it.
#
# Locks: see state.hpp. The monitor is held for moments only: never while llama.cpp computes or a
# state is moved, nor while Python runs. Nobody waits for it with
# the GIL in hand: what llama.cpp logs meanwhile, perhaps to Python, would wait for the GIL.
import threading as _threading

from cpython.exc cimport PyErr_CheckSignals
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport int32_t, int64_t
from libcpp.atomic cimport atomic

from llama_runner._llama_cpp.shim cimport (
    Engine,
    NativeRequest,
    Phase,
    now_us,
)

cdef extern from "Python.h" nogil:
    unsigned long PyThread_get_thread_ident()

cdef int SIGNAL_CHECK_US = 30_000
cdef unsigned long main_thread = _threading.main_thread().ident
cdef atomic[cpp_bool] process_exits


# ---- who runs the loop -------------------------------------------------------------------------

cdef bint acquire_loop(Engine * engine, bint to_close) noexcept nogil:
    """Hold the loop between two turns.

    False if this very thread is inside one, or if a signal handler raised while waiting.
    """
    cdef unsigned long me = PyThread_get_thread_ident()
    cdef bint raised = False
    engine.monitor.lock()
    if engine.running and engine.leader_thread == me:
        engine.monitor.unlock()
        return False
    if to_close:
        engine.closed = True
        engine.abort.store(True)
    engine.exclusive_waiting += 1
    while engine.running and not raised:
        engine.monitor.wait_ms(SIGNAL_CHECK_US // 1000)
        if me == main_thread:
            # Not in the way of a generation that a signal handler may begin.
            engine.exclusive_waiting -= 1
            engine.monitor.unlock()
            raised = interrupted(engine)
            engine.monitor.lock()
            engine.exclusive_waiting += 1
    engine.exclusive_waiting -= 1
    if raised:
        engine.monitor.notify_all()
    else:
        engine.running = True
        engine.leader_thread = me
    engine.monitor.unlock()
    return not raised


cdef void release_loop(Engine * engine, ContextBox * box) noexcept nogil:
    engine.monitor.lock()
    if box is not NULL:
        drop_orphans(engine, box)
    engine.running = False
    engine.monitor.notify_all()
    engine.monitor.unlock()


cdef bint advance(Engine * engine, ContextBox * box, NativeRequest * request,
                  bint streaming) noexcept nogil:
    """Go on until the request is done or, when streaming, has text to show.

    False where that cannot be: this very thread is inside a turn (a signal handler or callback of
    that generation), or another one waits for this request already.
    """
    cdef unsigned long me = PyThread_get_thread_ident()
    cdef size_t i
    engine.monitor.lock()
    if (engine.running and engine.leader_thread == me) or is_active(engine, request):
        engine.monitor.unlock()
        return False
    engine.active.push_back(request)
    request.streaming = streaming
    while not is_ready(request):
        # While the loop runs, the turn in hand may hold this request: only the leader ends it.
        if engine.closed and not engine.running:
            fail(engine, box, request, CONTEXT_CLOSED)
        elif engine.broken.load() and not engine.running:
            fail(engine, box, request, CONTEXT_BROKEN)
        elif engine.running or engine.exclusive_waiting > 0:
            engine.monitor.wait_ms(SIGNAL_CHECK_US // 1000)
            if me == main_thread:
                engine.monitor.unlock()
                if interrupted(engine):
                    request.cancelled.store(True)
                    engine.abort.store(True)
                engine.monitor.lock()
        else:
            engine.running = True
            engine.leader = request
            engine.leader_thread = me
            engine.checks_signals = me == main_thread
            while (not is_ready(request) and engine.exclusive_waiting == 0
                   and not engine.broken.load() and not engine.closed):
                take_turn(engine, box)
                engine.monitor.notify_all()
            drop_orphans(engine, box)
            engine.leader = NULL
            engine.running = False
            engine.monitor.notify_all()
    for i in range(engine.active.size()):
        if engine.active[i] == request:
            engine.active.erase(engine.active.begin() + i)
            break
    engine.monitor.unlock()
    return True


cdef bint is_active(Engine * engine, NativeRequest * request) noexcept nogil:
    cdef size_t i
    for i in range(engine.active.size()):
        if engine.active[i] == request:
            return True
    return False


cdef bint is_ready(NativeRequest * request) noexcept nogil:
    return (request.phase == Phase.Done or request.paused
            or (request.streaming and request.released > request.taken))


cdef void give_up_slot(Engine * engine, ContextBox * box, SequencePtr & sequence) noexcept nogil:
    """Free a sequence's cells now, or after the turn in hand where the loop is running."""
    engine.monitor.lock()
    if engine.running:
        engine.orphans.push_back(sequence)
    else:
        drop_cells(engine, box, sequence.get())
        engine.monitor.notify_all()
    engine.monitor.unlock()


# ---- stopping ----------------------------------------------------------------------------------

cdef cpp_bool should_abort(void * data) noexcept nogil:
    """ggml's abort callback, polled between the nodes of a graph by the leader's thread."""
    cdef Engine * engine = <Engine *> data
    if process_exits.load():
        return True
    if engine.checks_signals:
        check_signals(engine)
    # Half-moved cells cannot be made right again, and a recurrent state that is half computed is
    # lost for all in the batch: whoever cancels then waits for the end of it.
    if engine.settling or (engine.traits.recurrent and engine.shares.size() > 1):
        return False
    return engine.abort.load()


cdef void check_signals(Engine * engine) noexcept nogil:
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


cdef bint interrupted(Engine * engine) noexcept with gil:
    """Run Python's signal handlers; True if one raised. The exception waits in engine.interrupt."""
    try:
        PyErr_CheckSignals()
    except BaseException as error:
        if engine.interrupt is NULL:
            Py_INCREF(error)
            engine.interrupt = <void *> error
        return True
    return False


cdef int raise_interrupt(Engine * engine) except -1:
    if engine.interrupt is NULL:
        return 0
    error = <object> engine.interrupt
    engine.interrupt = NULL
    Py_DECREF(error)
    raise error
